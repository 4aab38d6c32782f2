"""From a recipe to a Trainer: the only room that builds one."""
