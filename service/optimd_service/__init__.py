"""The optimd server: weights and optimizer state behind HTTP."""

from importlib.metadata import version

__version__ = version("optimd")
