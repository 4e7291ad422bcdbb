"""The paper's figures of a run. The command line is `__main__`."""

FIGURE_SUFFIXES = (".png", ".svg")
OF_METRICS = ("curves", "training_error", "magnitudes")
OF_PROFILE = ("layer_times",)  # drawn by default where there is a trace
OF_IMAGES = ("predictions", "nearest", "confusion", "activations")
ALL = (*OF_METRICS, *OF_PROFILE, "kernels", *OF_IMAGES)
