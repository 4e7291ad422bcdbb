"""A run and its folder: checkpoints, records, intervals."""
