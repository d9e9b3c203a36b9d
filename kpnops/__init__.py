"""Fused kernels for kernel prediction: filtering an image with a different, predicted filter at
every pixel."""

from . import reference
from ._config import show_config
from ._decoupled_filter.api import decoupled_filter

__all__ = ["__version__", "decoupled_filter", "reference", "show_config"]

__version__ = "0.1.0"
