"""Searches for flags of the trainer with low validation error. Optuna chooses values, trainers try them."""

SAMPLERS = ("tpe", "random", "grid")
MOST_TRIALS = 10_000  # of a sweep
