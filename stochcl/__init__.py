"""stochcl: compress what a neural network knows about an image."""

__version__ = "0.1.0"
