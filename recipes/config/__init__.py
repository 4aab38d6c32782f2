"""The recipe: its schema, its composition from YAML files and overrides, its error messages. Imports the regime."""
