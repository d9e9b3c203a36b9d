"""Which implementation runs a call: Triton kernels on a GPU, PyTorch operations everywhere else."""

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["backend", "interpreted", "may_have_kernels", "obstacle"]

_OLDEST_CAPABILITY = (8, 0)
_OLDEST_TRITON = (3, 6)


def backend(input: Tensor, package: str | None = __package__) -> ModuleType:
    """The module of an operator's ``package`` whose ``forward`` and ``backward`` run for tensors on
    ``input``'s device."""
    device = input.device
    if device.type == "cpu":
        return _load(package, "triton_backend" if interpreted() else "cpu")
    reason = obstacle(device.type, device.index or 0)
    if reason is None:
        return _load(package, "triton_backend")
    _warn_once(str(device), reason)
    return _load(package, "cpu")


def may_have_kernels(device: torch.device) -> bool:
    """Whether kernels could run for tensors on a device, also one that is not there; ``backend``
    knows whether they do."""
    return device.type == "cuda" or interpreted()


def interpreted() -> bool:
    """Whether CPU tensors go through the Triton kernels in Triton's interpreter
    (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def obstacle(device_type: str, index: int) -> str | None:
    """Why the Triton kernels can not run on a device, or None where they can."""
    if device_type != "cuda":
        return f"there are no kernels for devices of type {device_type!r}"
    reason = triton_problem()
    if reason is not None:
        return reason
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < _OLDEST_CAPABILITY:
            return f"compute capability {capability[0]}.{capability[1]} is older than 8.0"
    return None


@functools.cache
def triton_problem() -> str | None:
    """Why Triton itself is not usable, or None where it is."""
    try:
        triton = importlib.import_module("triton")
    except Exception as error:  # a broken install raises many things: each means "not usable"
        return f"Triton can not be imported ({type(error).__name__}: {error})"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _OLDEST_TRITON:
        return f"Triton {triton.__version__} is older than 3.6"
    return None


@functools.cache
def _warn_once(device: str, reason: str) -> None:
    warnings.warn(
        f"kpnops runs on {device} with PyTorch operations instead of its kernels: {reason}",
        stacklevel=2,
    )


@functools.cache
def _load(package: str | None, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")
