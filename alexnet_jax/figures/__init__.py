"""The paper's figures of a run. The command line is `__main__`."""

FIGURE_SUFFIXES = (".png", ".svg")
OF_METRICS = ("curves", "training_error", "magnitudes")
OF_IMAGES = ("predictions", "nearest", "confusion", "activations")
ALL = (*OF_METRICS, "kernels", *OF_IMAGES)
