"""JPEG: files through Pillow, and the same loss on a device, for whole batches of training photos.

:func:`jpeg_loss` does in PyTorch what baseline JPEG with the standard tables and chroma at half
resolution in both directions does to an image, with libjpeg-turbo's integer arithmetic: its results
are equal to the last bit. Nothing is entropy coded, since that loses nothing.

References:
    ITU-T T.81 (the transform; annex K: the tables); JFIF 1.02 (the colours); libjpeg (constants,
    rounding, how a quality scales the tables, and the triangle filter that brings chroma to full
    size).
"""

import io
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dkpn.packages import require

BLOCK = 8
CELL = 16  # pixels a side of the smallest part that is coded: two blocks of luma, one of chroma

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# Rows Y, Cb, Cr and R, G, B in 65,536ths, as libjpeg's integer arithmetic has them.
_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_TO_RGB = ((65536, 0, 91881), (65536, -22554, -46802), (65536, 116130, 0))


def jpeg_encode(image: np.ndarray, quality: int) -> bytes:
    """Compress to a JPEG file: baseline, chroma at half resolution in both directions.

    Args:
        image: (H, W, 3) uint8.
        quality: 1 to 100, Pillow's (libjpeg's) scale.

    Returns:
        The bytes of the file.

    Raises:
        TypeError: ``image`` is not uint8.
        ValueError: another shape, or a quality out of range.
        ModuleNotFoundError: Pillow is not installed.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image: expected a uint8 numpy array, got {kind}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: expected shape (H, W, 3), got {image.shape}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    buffer = io.BytesIO()
    picture = require("PIL.Image").fromarray(np.ascontiguousarray(image))
    picture.save(buffer, format="JPEG", quality=int(quality), subsampling="4:2:0")
    return buffer.getvalue()


def jpeg_decode(data: bytes) -> np.ndarray:
    """Decompress what :func:`jpeg_encode` made: (H, W, 3) uint8."""
    with require("PIL.Image").open(io.BytesIO(data)) as picture:
        return np.array(picture)


def jpeg_roundtrip(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress to JPEG and back; arguments and errors are those of :func:`jpeg_encode`.

    Returns:
        (H, W, 3) uint8.
    """
    return jpeg_decode(jpeg_encode(image, quality))


def jpeg_loss(image: Tensor, qualities: Sequence[int]) -> Tensor:
    """Do to a batch of 8-bit images what compressing them to JPEG and back does.

    Args:
        image: (B, 3, H, W), floating point: sRGB-encoded code values divided by 255; any device.
        qualities: 1 to 100 for each image, libjpeg's scale.

    Returns:
        Tensor of the same shape, dtype and device: code values divided by 255.

    Raises:
        TypeError: ``image`` is not floating point.
        ValueError: another shape, another number of qualities, or one out of range.
    """
    if not image.is_floating_point():
        raise TypeError(f"image: expected a floating-point tensor, got {image.dtype}")
    if image.dim() != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"image: expected shape (B, 3, H, W), got {tuple(image.shape)}")
    if len(qualities) != image.shape[0]:
        raise ValueError(
            f"qualities: expected one for each of {image.shape[0]} images, got {len(qualities)}"
        )
    if not all(1 <= quality <= 100 for quality in qualities):
        raise ValueError(f"qualities: expected 1 to 100, got {list(qualities)}")
    height, width = image.shape[-2:]
    device = image.device
    tables = torch.stack([_tables(quality) for quality in qualities]).to(device)  # (B, 2, 8, 8)
    codes = (image.float() * 255.0).round()
    padding = (0, -width % CELL, 0, -height % CELL)
    # libjpeg repeats the last row of luma, and the last column, up to whole cells.
    codes = F.pad(codes, padding, mode="replicate")
    luma, chroma = _mix(codes, _TO_YCC).split((1, 2), dim=1)
    luma = _rounded(luma)
    chroma = (chroma + 128.0 + 32767 / 65536).floor()  # here libjpeg takes halves down
    # Downwards it repeats the last row of halved chroma, which is the mean of two of the image.
    rows = math.ceil(height / 2)
    below = (0, 0, 0, luma.shape[-2] // 2 - rows)
    chroma = F.pad(_halve(chroma[..., : 2 * rows, :]), below, mode="replicate")
    luma = _quantise(luma - 128.0, tables[:, :1]) + 128.0
    chroma = _quantise(chroma - 128.0, tables[:, 1:]) + 128.0
    # The decoder's filter sees no further than the image's own chroma pixels.
    chroma = chroma[..., : math.ceil(height / 2), : math.ceil(width / 2)]
    chroma = _double(chroma)[..., :height, :width] - 128.0
    decoded = _mix(torch.cat((luma[..., :height, :width], chroma), dim=1), _TO_RGB)
    return (_rounded(decoded).clamp(0.0, 255.0) / 255.0).to(image.dtype)


@cache
def _tables(quality: int) -> Tensor:
    """The tables of luma and chroma for a quality: (2, 8, 8) float32."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor([_LUMA, _CHROMA])
    return ((base * scale + 50) // 100).clamp(1, 255).float()


@cache
def _cosines() -> Tensor:
    """The 8-point cosine transform with libjpeg's 13-bit constants, sqrt(8) times the orthonormal
    one, as a matrix of float64; its transpose transforms back."""
    mirrored = torch.eye(8, dtype=torch.float64)
    s0, s1, s2, s3 = mirrored[:4] + mirrored.flip(0)[:4]
    d0, d1, d2, d3 = mirrored[:4] - mirrored.flip(0)[:4]
    rotated = 4433 * (s0 - s3 + s1 - s2)
    common = 9633 * (d0 + d1 + d2 + d3)
    outer, inner = -7373 * (d0 + d3), -20995 * (d1 + d2)
    odd, even = common - 16069 * (d1 + d3), common - 3196 * (d0 + d2)
    rows = [
        8192 * (s0 + s1 + s2 + s3),
        12299 * d0 + outer + even,
        rotated + 6270 * (s0 - s3),
        25172 * d1 + inner + odd,
        8192 * (s0 + s3 - s1 - s2),
        16819 * d2 + inner + even,
        rotated - 15137 * (s1 - s2),
        2446 * d3 + outer + odd,
    ]
    return torch.stack(rows) / 8192


def _rounded(value: Tensor) -> Tensor:
    """Round to integers as libjpeg does, halves up; torch.round takes halves to even ones."""
    return (value + 0.5).floor()


def _mix(image: Tensor, matrix: tuple[tuple[int, int, int], ...]) -> Tensor:
    """Multiply the channels of (B, 3, H, W) by a 3 x 3 matrix of 65,536ths, exactly."""
    red, green, blue = image.double().unbind(1)
    rows = [(row[0] * red + row[1] * green + row[2] * blue) / 65536 for row in matrix]
    return torch.stack(rows, dim=1)


def _halve(chroma: Tensor) -> Tensor:
    """Average 2 x 2 pixels; halves are rounded down and up in turn along a row, as libjpeg does."""
    total = 4.0 * F.avg_pool2d(chroma, 2)
    bias = 1.0 + torch.arange(total.shape[-1], device=chroma.device) % 2
    return ((total + bias) / 4.0).floor()


def _quantise(plane: Tensor, table: Tensor) -> Tensor:
    """Transform blocks of 8 x 8, round to multiples of the table, transform back and round.

    Args:
        plane: (B, C, H, W), sides multiples of 8, around 0.
        table: (B, 1, 8, 8).
    """
    # Sums of integers over 8192 are exact in float64, so that they round as libjpeg's integers do.
    blocks = rearrange(plane.double(), "b c (h i) (w j) -> b (c h w) i j", i=BLOCK, j=BLOCK)
    cosines = _cosines().to(plane.device)
    # The transforms keep quarters after the rows (on the way back: after the columns).
    rows = _rounded(4.0 * (blocks @ cosines.T)) / 4.0
    coefficients = _rounded(cosines @ rows) / 8.0
    # Halves are rounded away from zero.
    coefficients = coefficients.sign() * (coefficients.abs() / table + 0.5).floor() * table
    columns = _rounded(4.0 * (cosines.T @ coefficients)) / 4.0
    blocks = _rounded(columns @ cosines / 8.0).clamp(-128.0, 127.0)
    return rearrange(
        blocks.float(),
        "b (c h w) i j -> b c (h i) (w j)",
        c=plane.shape[1],
        h=plane.shape[2] // BLOCK,
    )


def _double(chroma: Tensor) -> Tensor:
    """Twice the size with weights 3/4 and 1/4 in both directions; the last pixels are repeated."""
    padded = F.pad(chroma, (1, 1, 1, 1), mode="replicate")
    rows = _interleaved(padded, dim=-2)  # four times the value: integers
    both = _interleaved(rows, dim=-1)  # sixteen times
    # Ties are broken by column, so that they do not all go the same way.
    bias = 8.0 - torch.arange(both.shape[-1], device=chroma.device) % 2
    return ((both + bias) / 16.0).floor()


def _interleaved(padded: Tensor, dim: int) -> Tensor:
    """Each inner value with its neighbour before and after: 3 v + v', in turn along ``dim``."""
    size = padded.shape[dim] - 2
    middle = padded.narrow(dim, 1, size)
    before = 3.0 * middle + padded.narrow(dim, 0, size)
    after = 3.0 * middle + padded.narrow(dim, 2, size)
    return torch.stack((before, after), dim=dim).flatten(dim - 1, dim)
