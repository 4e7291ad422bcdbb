"""Experiments that are programs: `python -m experiments.NAME`."""

import alexnet_jax  # noqa: F401  # before jax is loaded: it sets the level of jaxlib's log
