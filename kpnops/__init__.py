"""Fused kernels for kernel prediction: filtering an image with a different, predicted filter at
every pixel."""

from . import compat, nn, reference
from ._config import show_config
from ._decoupled_filter.api import decoupled_filter
from ._kernel_filter import kernel_filter
from ._predict_filter.api import predict_filter

__all__ = [
    "__version__",
    "compat",
    "decoupled_filter",
    "kernel_filter",
    "nn",
    "predict_filter",
    "reference",
    "show_config",
]

__version__ = "0.1.0"
