"""The two-tower AlexNet of 2012 as living research code in JAX and Flax."""
