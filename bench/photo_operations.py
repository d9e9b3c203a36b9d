"""Reconstruction as calls without arguments, and whether its results are right.

The network has random weights: those that are shipped need a package more, and are no faster.
"""

import importlib
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from bench.operations import Call
from bench.oracle import WrongResultError, unit_roundoff
from bench.photo_cases import PhotoCase, PhotoTensors
from bench.providers import Provider
from bench.results import OWN
from bench.step_operations import STEP_FUSED, STEP_NAIVE, make_model, move_weights

if TYPE_CHECKING:
    import numpy as np

    from dkpn.jobs import Job
    from dkpn.model import DKPN
    from dkpn.photos import Photo

INFER = "dkpn_infer"  # model.infer on photos in memory
FILES = "dkpn_files"  # PNG files to EXR files: decoding and encoding beside the network
# A result may differ from the naive filter's by this times what one rounding of every weight moves
# that one by.
SLACK = 8.0
CHECKED_GIBIBYTES = 2.0  # for a tile of the naive filter, which takes more than is foreseen


def infer_calls(case: PhotoCase, pass_name: str, sets: list[PhotoTensors]) -> list[Call]:
    """Return calls of `DKPN.infer`; photos and results lie in the memory of the computer."""
    model = make_model(STEP_FUSED, case.kernel_size, sets[0].photos.device).eval()
    return [partial(_infer, model, tensors.photos.cpu()) for tensors in sets]


def files_calls(case: PhotoCase, pass_name: str, sets: list[PhotoTensors]) -> list[Call]:
    """Return calls that do what ``dkpn reconstruct`` does with a batch of files."""
    model = make_model(STEP_FUSED, case.kernel_size, sets[0].photos.device).eval()
    return [_Files(model, tensors.photos.cpu()) for tensors in sets]


def _infer(model: "DKPN", photos: Tensor, max_memory: float | None = None) -> tuple[Tensor, ...]:
    return (model.infer(photos, max_memory=max_memory),)


class _Files:
    """Photos in files of a temporary folder that goes with the object."""

    def __init__(self, model: "DKPN", photos: Tensor):
        from dkpn.hdr_io import write_png
        from dkpn.jobs import Job

        folder = tempfile.TemporaryDirectory(prefix="bench-")
        weakref.finalize(self, folder.cleanup)
        self._model, self._jobs = model, []
        for number, photo in enumerate(photos):
            path = Path(folder.name) / f"{number}.png"
            write_png(path, rearrange(photo, "c h w -> h w c").contiguous().numpy())
            self._jobs.append(Job(path, path.with_suffix(".exr"), None))

    def __call__(self) -> tuple[Tensor, ...]:
        from dkpn.reconstruct import Options, reconstruct_jobs

        results = []

        def keep(job: "Job", photo: "Photo", result: "np.ndarray") -> None:
            results.append(rearrange(torch.from_numpy(result), "h w c -> c h w"))

        for _, error in reconstruct_jobs(self._model, self._jobs, Options(), keep=keep):
            if error is not None:
                raise error
        return (torch.stack(results),)


def photo_checker(
    case: PhotoCase, tensors: PhotoTensors
) -> Callable[[Provider, tuple[Tensor, ...]], float]:
    """Return what tells how far a provider's results are off, as a multiple of their budget.

    The budget is how far the results of the naive filter move when every weight is off by one
    rounding, times `SLACK`.

    Args:
        case: the problem.
        tensors: the photos.

    Returns:
        A function of a provider and its outputs; raises WrongResultError.
    """
    device, photos = tensors.photos.device, tensors.photos.cpu()
    model = make_model(STEP_NAIVE, case.kernel_size, device).eval()
    (expected,) = _infer(model, photos, CHECKED_GIBIBYTES)
    unit = unit_roundoff(torch.float32 if device.type == "cpu" else torch.float16)
    move_weights(model, unit)
    (other,) = _infer(model, photos, CHECKED_GIBIBYTES)
    moved = (other - expected).norm()

    def check(provider: Provider, outputs: tuple[Tensor, ...]) -> float:
        (actual,) = outputs
        if not actual.isfinite().all():
            raise WrongResultError("the result holds NaN or infinity")
        ratio = ((actual - expected).norm() / (SLACK * moved)).item()
        if not ratio <= 1:
            raise WrongResultError(f"result: the error's norm is {ratio:.3g} times its budget")
        return ratio

    return check


def photo_bytes(case: PhotoCase, pass_name: str, device: torch.device) -> int:
    """Results; the network itself keeps to half of what is free."""
    return case.result_bytes


def _refuses(
    modules: tuple[str, ...], case: Any, pass_name: str, device: torch.device
) -> str | None:
    """Say what is not here: the filters need none of it."""
    try:
        for module in modules:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"needs the package {error.name}, which is not installed"
    return None


PHOTO_PROVIDERS = [
    Provider(INFER, infer_calls, photo_bytes, partial(_refuses, ("dkpn.model",)), role=OWN),
    Provider(
        FILES,
        files_calls,
        photo_bytes,
        partial(_refuses, ("dkpn.model", "PIL", "imagecodecs", "OpenEXR")),
        role=OWN,
    ),
]
