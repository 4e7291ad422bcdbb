"""Searches flags of the trainer on validation error: Optuna chooses, real trainers try."""
