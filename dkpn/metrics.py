"""Measures of how near a reconstruction is to the truth, as the evaluation protocol uses them.

Images are numpy arrays, (H, W, 3), linear Rec.709, 1.0 = clip level = 203 cd/m². They are measured
in float64, as light of 0.005 to 4000 cd/m²: what is darker or brighter counts as these bounds.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dkpn.color import (
    LUMINANCE_WEIGHTS,
    WHITE_NITS,
    mu_law,
    pq_decode,
    pq_encode,
    pu21_encode,
)

MIN_NITS = 0.005
MAX_NITS = 4000.0
PU21_PEAK = 256.0
PSNR_CAP = 100.0  # dB
CLIPPED_LEVEL = 0.98
WELL_EXPOSED = (0.02, 0.98)
MIN_GAIN_PIXELS = 100

_SSIM_SIGMA = 1.5  # pixels
_SSIM_RADIUS = 5  # pixels: a window of 11 x 11
_SSIM_K = (0.01, 0.03)

# sRGB primaries and white D65 (IEC 61966-2-1), rows X, Y, Z.
_RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.119192, 0.9503041],
    ]
)
_XYZ_TO_RGB = np.linalg.inv(_RGB_TO_XYZ)
# The published correction works on u' and v' times 410 / 255, and this matters to the ridge.
_CHROMA_SCALE = 410.0 / 255.0
_CHROMA_RIDGE = 0.01
_MIN_XYZ = 1e-4  # cd/m²


def pu21_psnr(result: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the PSNR of the PU21-encoded images, ``10 log10(256² / mean((P(r) - P(t))²))``.

    Args:
        result: (H, W, 3), linear, 1.0 = 203 cd/m².
        truth: the same.
        mask: (H, W) bool, the pixels to measure; by default all.

    Returns:
        dB, at most 100; NaN where the mask is empty.

    Raises:
        ValueError: shapes do not match, or a value is NaN.

    References:
        Mantiuk and Azimi 2021 (see :func:`dkpn.color.pu21_encode`); peak 256 and RGB channels, each
        as if it were luminance, as in https://github.com/gfxdisp/pu21.

    >>> truth = np.full((2, 2, 3), 0.5)
    >>> pu21_psnr(truth, truth)
    100.0
    """
    check_images(result, truth, mask)
    encoded = [_apply(pu21_encode, to_nits(image)) for image in (result, truth)]
    return _psnr(encoded[0] - encoded[1], mask, PU21_PEAK)


def pu21_ssim(result: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean structural similarity of the PU21-encoded luminances.

    ``(2 m n + a) (2 c + b) / ((m² + n² + a) (v + w + b))``, averaged over all pixels, with the
    means m and n, variances v and w and covariance c of both images in a Gaussian window of 11 x 11
    pixels (standard deviation 1.5), a = (0.01 · 256)², b = (0.03 · 256)². Beyond the border the
    nearest pixel is repeated.

    Args:
        result: (H, W, 3), linear, 1.0 = 203 cd/m².
        truth: the same.

    Returns:
        No unit; 1 for the truth, at least -1.

    Raises:
        ValueError: shapes do not match, or a value is NaN.

    References:
        Wang, Bovik, Sheikh and Simoncelli, Image quality assessment: from error visibility to
        structural similarity, IEEE TIP 13(4), 2004; luminance, dynamic range 256 and border as in
        https://github.com/gfxdisp/pu21, which calls MATLAB's ``ssim``.

    >>> truth = np.linspace(0.1, 0.9, 300).reshape(10, 10, 3)
    >>> pu21_ssim(truth, truth)
    1.0
    """
    check_images(result, truth)
    first, second = (
        _apply(pu21_encode, to_nits(image) @ np.array(LUMINANCE_WEIGHTS))
        for image in (result, truth)
    )
    first_mean, second_mean = _window_mean(first), _window_mean(second)
    variances = _window_mean(first**2) - first_mean**2 + _window_mean(second**2) - second_mean**2
    covariance = _window_mean(first * second) - first_mean * second_mean
    luminance_floor, contrast_floor = ((k * PU21_PEAK) ** 2 for k in _SSIM_K)
    similarity = (2 * first_mean * second_mean + luminance_floor) * (
        2 * covariance + contrast_floor
    )
    similarity /= (first_mean**2 + second_mean**2 + luminance_floor) * (variances + contrast_floor)
    return float(similarity.mean())


def mu_law_psnr(result: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the PSNR of the images compressed by the µ-law with µ = 5000.

    Both are divided by the truth's largest value and clipped to [0, 1]; the peak is 1.

    Args:
        result: (H, W, 3), linear, 1.0 = 203 cd/m².
        truth: the same.
        mask: (H, W) bool, the pixels to measure; by default all.

    Returns:
        dB, at most 100; NaN where the mask is empty.

    Raises:
        ValueError: shapes do not match, or a value is NaN.

    References:
        Kalantari and Ramamoorthi 2017 (see :func:`dkpn.color.mu_law`).
    """
    check_images(result, truth, mask)
    nits = [to_nits(image) for image in (result, truth)]
    peak = nits[1].max()
    encoded = [_apply(mu_law, np.minimum(image / peak, 1.0)) for image in nits]
    return _psnr(encoded[0] - encoded[1], mask, 1.0)


def clipped_pixels(photo: np.ndarray) -> np.ndarray:
    """Return where any channel of an 8-bit photo is at least 0.98.

    Args:
        photo: (H, W, 3) uint8.

    Returns:
        (H, W) bool.
    """
    return np.any(_code_values(photo) >= CLIPPED_LEVEL, axis=2)


def fit_gain(result: np.ndarray, truth: np.ndarray, photo: np.ndarray) -> float:
    """Return the factor that brings a result of unknown scale nearest to the truth.

    ``sum(r t) / sum(r²)`` over all channels of the pixels whose photo has every channel inside
    (0.02, 0.98) and whose truth has every channel below 1: the second condition keeps out clipped
    pixels that JPEG ringing darkened.

    Args:
        result: (H, W, 3), linear, any unit.
        truth: (H, W, 3), linear, 1.0 = clip level.
        photo: (H, W, 3) uint8, the input.

    Returns:
        The gain, above 0.

    Raises:
        ValueError: shapes do not match, a value is not a number, fewer than 100 such pixels, or a
            result that has no gain above 0 there (all of it black, or negative).
    """
    check_images(result, truth)
    if photo.shape != truth.shape:
        raise ValueError(f"photo: expected the truth's shape {truth.shape}, got {photo.shape}")
    codes = _code_values(photo)
    darkest, brightest = WELL_EXPOSED
    usable = ((codes > darkest) & (codes < brightest) & (truth < 1.0)).all(axis=2)
    if usable.sum() < MIN_GAIN_PIXELS:
        raise ValueError(
            f"photo: expected at least {MIN_GAIN_PIXELS} well-exposed pixels to fit the gain on, "
            f"got {usable.sum()}"
        )
    light = result[usable].astype(np.float64)
    power = float(np.sum(light**2))
    gain = float(np.sum(light * truth[usable])) / power if 0 < power < math.inf else 0.0
    if not 0 < gain < math.inf:
        raise ValueError(
            "result: expected light in the well-exposed pixels to fit the gain on, got "
            f"{light.min()} to {light.max()}"
        )
    return gain


def crf_correct(result: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Correct tone and colour of a result as well as a global curve can, before it is measured.

    Luminance, in PQ, is mapped by the cubic that fits the truth best by least squares over all
    pixels; u' and v' by cubics with a cross term, ``1, u, v, uv, u², v², u³, v³``, fitted with a
    ridge of 0.01 (per pixel, divided by the eight terms) towards leaving them as they are. What is
    left is what no camera response curve explains.

    Args:
        result: (H, W, 3), linear, 1.0 = 203 cd/m²; a fitted gain comes first.
        truth: the same.

    Returns:
        (H, W, 3) float64, linear, 1.0 = 203 cd/m², at least 0.

    Raises:
        ValueError: shapes do not match, or a value is NaN.

    References:
        Hanji, Mantiuk, Eilertsen, Hajisharif and Unger, Comparison of single image HDR
        reconstruction methods - the caveats of quality assessment, SIGGRAPH 2022 Conference Papers,
        doi 10.1145/3528233.3530729; the scale of u'v' and the ridge follow
        https://github.com/gfxdisp/pu21.
    """
    check_images(result, truth)
    # Rows of X, Y, Z and of u', v': BLAS is slow on columns so few.
    measured = [_RGB_TO_XYZ @ to_nits(image).reshape(-1, 3).T for image in (result, truth)]
    source, target = (np.maximum(xyz, _MIN_XYZ) for xyz in measured)
    pq_source, pq_target = (_apply(pq_encode, xyz[1]) for xyz in (source, target))
    powers = np.stack([np.ones_like(pq_source), pq_source, pq_source**2, pq_source**2 * pq_source])
    coefficients = np.linalg.lstsq(powers.T, pq_target, rcond=None)[0]
    luminance = np.maximum(_apply(pq_decode, coefficients @ powers), MIN_NITS)

    u, v = _chromaticity(source)
    terms = np.stack([np.ones_like(u), u, v, u * v, u**2, v**2, u**2 * u, v**2 * v])
    identity = np.zeros((2, 8))
    identity[0, 1] = identity[1, 2] = 1.0
    ridge = _CHROMA_RIDGE * u.size / 8
    normal = terms @ terms.T + ridge * np.eye(8)
    moments = _chromaticity(target) @ terms.T + ridge * identity
    xyz = _from_chromaticity(luminance, np.linalg.solve(normal, moments.T).T @ terms)
    return np.maximum(_XYZ_TO_RGB @ xyz, 0.0).T.reshape(result.shape) / WHITE_NITS


def _chromaticity(xyz: np.ndarray) -> np.ndarray:
    """CIE 1976 u' and v', scaled: ``4 X / (X + 15 Y + 3 Z)``, ``9 Y / (X + 15 Y + 3 Z)``."""
    denominator = np.array([1.0, 15.0, 3.0]) @ xyz
    return _CHROMA_SCALE * np.stack([4 * xyz[0], 9 * xyz[1]]) / denominator


def _from_chromaticity(luminance: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    # The published correction bounds the chromaticities below in the same way.
    u, v = np.maximum(chroma, MIN_NITS) / _CHROMA_SCALE
    x = luminance * 9 * u / (4 * v)
    z = luminance * (12 - 3 * u - 20 * v) / (4 * v)
    return np.maximum(np.stack([x, luminance, z]), _MIN_XYZ)


def _window_mean(values: np.ndarray) -> np.ndarray:
    """Average (H, W) with the Gaussian window of the structural similarity."""
    offsets = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    weights /= weights.sum()
    height, width = values.shape
    padded = np.pad(values, _SSIM_RADIUS, mode="edge")
    rows = np.zeros((height, padded.shape[1]))
    for offset, weight in enumerate(weights):
        rows += weight * padded[offset : offset + height]
    means = np.zeros((height, width))
    for offset, weight in enumerate(weights):
        means += weight * rows[:, offset : offset + width]
    return means


def to_nits(image: np.ndarray) -> np.ndarray:
    """Return the light of an image on the display: float64, within 0.005 to 4000 cd/m²."""
    return np.clip(image.astype(np.float64) * WHITE_NITS, MIN_NITS, MAX_NITS)


def _apply(encoding: Callable[[Tensor], Tensor], values: np.ndarray) -> np.ndarray:
    return encoding(torch.from_numpy(values)).numpy()


def _code_values(photo: np.ndarray) -> np.ndarray:
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise ValueError(f"photo: expected (H, W, 3) uint8, got {photo.shape} {photo.dtype}")
    return photo / 255.0


def _psnr(difference: np.ndarray, mask: np.ndarray | None, peak: float) -> float:
    if mask is not None:
        difference = difference[mask]
    if difference.size == 0:
        return math.nan
    error = float(np.mean(difference**2))
    return min(10 * math.log10(peak**2 / error), PSNR_CAP) if error > 0 else PSNR_CAP


def check_images(result: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> None:
    """Raise ValueError where two images, and a mask of pixels, cannot be compared."""
    for name, image in (("result", result), ("truth", truth)):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{name}: expected shape (H, W, 3), got {image.shape}")
        if np.isnan(image).any():
            raise ValueError(
                f"{name}: expected numbers, got {int(np.isnan(image).sum())} NaN values"
            )
    if result.shape != truth.shape:
        raise ValueError(f"result: expected the truth's shape {truth.shape}, got {result.shape}")
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != truth.shape[:2]):
        raise ValueError(f"mask: expected {truth.shape[:2]} bool, got {mask.shape} {mask.dtype}")
