"""Searches for flags of the trainer with low validation error. Optuna chooses values, trainers try them."""
