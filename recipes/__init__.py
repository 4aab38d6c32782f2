"""YAML recipes, their schema, and the way from a recipe to a Trainer."""
