"""Models, data, training methods and the training loop. Imports none of `exporters`, `evaluators`, `cli`."""

__version__ = "0.1.0"
