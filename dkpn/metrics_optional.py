"""Measures of visible differences that need a package of their own, which is never downloaded.

As in :mod:`dkpn.metrics`, images are numpy arrays, (H, W, 3), linear Rec.709, 1.0 = clip level =
203 cd/m², measured as light of 0.005 to 4000 cd/m².
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dkpn.color import WHITE_NITS
from dkpn.metrics import MAX_NITS, MIN_NITS, check_images, to_nits

INSTALL = {"flip_evaluator": 'pip install "kpnops[eval]"', "pycvvdp": "pip install cvvdp"}
"""How to install each package, by the name of its module."""

_FLIP_PIXELS_PER_DEGREE = 67.0  # of a display 0.7 m wide with 3840 pixels, seen from 0.7 m


def hdr_flip(result: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean HDR-FLIP error: what a viewer sees who flips between the two images.

    Both are tone-mapped (ACES) at several exposures, which the truth decides; each pixel counts
    with the largest error of all exposures. The viewer sits where a degree spans 67 pixels. Needs
    the package ``flip-evaluator``.

    Args:
        result: (H, W, 3), linear, 1.0 = 203 cd/m².
        truth: the same.

    Returns:
        No unit; 0 for the truth, at most 1: less is better.

    Raises:
        ValueError: shapes do not match, or a value is NaN.
        ModuleNotFoundError: the package is not installed.

    References:
        Andersson, Nilsson, Shirley and Akenine-Möller, Visualizing errors in rendered high dynamic
        range images, Eurographics 2021 Short Papers; computed by the authors' own package,
        https://github.com/NVlabs/flip.
    """
    flip_evaluator = _package("flip_evaluator")
    check_images(result, truth)
    light = [(to_nits(image) / WHITE_NITS).astype(np.float32) for image in (truth, result)]
    options = {"ppd": _FLIP_PIXELS_PER_DEGREE}
    _, error, _ = flip_evaluator.evaluate(*light, "HDR", applyMagma=False, parameters=options)
    return float(error)


def color_video_vdp(result: np.ndarray, truth: np.ndarray) -> float:
    """Return the quality that ColorVideoVDP predicts, on an HDR display of 0.005 to 4000 cd/m².

    The display is its model "standard_hdr_linear" but for the peak and the black level: 30 inches,
    3840 x 2160 pixels, 75 pixels a degree, in a room of 10 lux. Computed on the CPU, so that all
    machines agree. Needs the package ``cvvdp``, which brings its parameters along.

    Args:
        result: (H, W, 3), linear, 1.0 = 203 cd/m².
        truth: the same.

    Returns:
        Just-objectionable differences (JOD): 10 for the truth; one less means that three of four
        viewers prefer the truth. May be negative.

    Raises:
        ValueError: shapes do not match, or a value is NaN.
        ModuleNotFoundError: the package is not installed.

    References:
        Mantiuk, Hanji, Ashraf, Asano and Chapiro, ColorVideoVDP: a visual difference predictor for
        image, video and display distortions, ACM TOG 43(4), 2024; computed by the authors' own
        package, https://github.com/gfxdisp/ColorVideoVDP.
    """
    metric = _color_video_vdp()
    check_images(result, truth)
    light = [to_nits(image).astype(np.float32) for image in (result, truth)]
    quality, _ = metric.predict(*light, dim_order="HWC")
    return float(quality)


def _package(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModuleNotFoundError(
            f"{module} is needed for this measure and is not installed: {INSTALL[module]}",
            name=module,
        ) from error


@cache
def _color_video_vdp() -> Any:
    pycvvdp = _package("pycvvdp")
    display = pycvvdp.vvdp_display_photo_eotf(
        MAX_NITS,
        contrast=MAX_NITS / MIN_NITS,
        source_colorspace="BT.709",
        EOTF="linear",
        E_ambient=10,
    )
    return pycvvdp.cvvdp(
        display_name="standard_hdr_linear",
        display_photometry=display,
        device=torch.device("cpu"),
        quiet=True,
    )
