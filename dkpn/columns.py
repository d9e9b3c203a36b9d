"""The columns of an evaluation: which measure, of which result, on which pixels, in which unit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from dkpn.metrics import mu_law_psnr, pu21_psnr, pu21_ssim
from dkpn.metrics_optional import INSTALL, color_video_vdp, hdr_flip


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        heading: its name in the table.
        unit: what its numbers are, and their range where it is bounded.
        measure: from result and truth, and the mask where ``clipped``, to the number.
        corrected: measured after the camera-response correction, not after the gain alone.
        clipped: measured on the clipped pixels alone.
        decimals: how many the table shows.
        package: module that has to be installed for it; "": none.
    """

    heading: str
    unit: str
    measure: Callable[..., float]
    corrected: bool = False
    clipped: bool = False
    decimals: int = 2
    package: str = ""


_PSNR = "PU21-PSNR in dB, at most 100"
_SSIM = "PU21-SSIM, at most 1"
_FLIP = "HDR-FLIP, 0 to 1, less is better"
_JOD = "ColorVideoVDP in JOD, at most 10"

COLUMNS = {
    "gain": Column("gain", _PSNR, pu21_psnr),
    "crf": Column("+CRF", _PSNR, pu21_psnr, corrected=True),
    "clipped": Column("clipped", _PSNR, pu21_psnr, clipped=True),
    "clipped_crf": Column("clipped +CRF", _PSNR, pu21_psnr, corrected=True, clipped=True),
    "mu_law": Column("µ-law", "PSNR after the µ-law in dB, at most 100", mu_law_psnr),
    "ssim": Column("SSIM", _SSIM, pu21_ssim, decimals=4),
    "ssim_crf": Column("SSIM +CRF", _SSIM, pu21_ssim, corrected=True, decimals=4),
    "flip": Column("FLIP", _FLIP, hdr_flip, decimals=4, package="flip_evaluator"),
    "flip_crf": Column(
        "FLIP +CRF", _FLIP, hdr_flip, corrected=True, decimals=4, package="flip_evaluator"
    ),
    "cvvdp": Column("JOD", _JOD, color_video_vdp, package="pycvvdp"),
    "cvvdp_crf": Column("JOD +CRF", _JOD, color_video_vdp, corrected=True, package="pycvvdp"),
}
"""All columns, by the names that ``--metrics`` and the CSV file use."""

JUDGED = ("gain", "crf", "clipped", "clipped_crf")
"""The four columns of the protocol."""

ALWAYS = (*JUDGED, "mu_law")
"""What is measured in every evaluation, shown or not."""

DEFAULT = (*JUDGED, "ssim")
"""What is shown where nothing else is asked for."""


def check_columns(names: tuple[str, ...]) -> None:
    """Raise where a column cannot be measured here.

    Args:
        names: keys of :data:`COLUMNS`.

    Raises:
        ValueError: none, one twice, or no such column.
        ModuleNotFoundError: its package is not installed.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"metrics: expected columns, each once, got {names}")
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"metrics: expected some of {', '.join(COLUMNS)}, got {name!r}")
        module = COLUMNS[name].package
        if module and find_spec(module) is None:
            raise ModuleNotFoundError(
                f"metrics: {name} needs a package that is not installed: {INSTALL[module]}",
                name=module,
            )


def score(
    name: str, gained: np.ndarray, corrected: np.ndarray, truth: np.ndarray, clipped: np.ndarray
) -> float:
    """Measure one column of one image.

    Args:
        name: key of :data:`COLUMNS`.
        gained: (H, W, 3), the result after the gain, linear, 1.0 = 203 cd/m².
        corrected: the same after the camera-response correction too.
        truth: the same of the truth.
        clipped: (H, W) bool, the clipped pixels.

    Returns:
        The number in the column's unit; NaN only for a column of clipped pixels where there are
        none.

    Raises:
        ValueError: the measure gave NaN or infinity.
    """
    column = COLUMNS[name]
    mask = (clipped,) if column.clipped else ()
    value = column.measure(corrected if column.corrected else gained, truth, *mask)
    if not math.isfinite(value) and not (column.clipped and not clipped.any()):
        raise ValueError(f"{name}: the measure gave {value}, which is no result")
    return value
