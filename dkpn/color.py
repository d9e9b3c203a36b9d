"""Colour and luminance encodings, each with its unit.

Images are torch tensors with the channels in dimension -3, ``(..., 3, H, W)``, linear light with
Rec.709 primaries, and 1.0 is both the clip level of the photo and diffuse white, 203 cd/m². Every
function is differentiable, keeps the dtype and the device of its argument and leaves it unchanged.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

WHITE_NITS = 203.0
"""Luminance of 1.0, in cd/m²: HDR reference white of ITU-R BT.2408."""

LUMINANCE_WEIGHTS = (0.2126, 0.7152, 0.0722)
"""Rec.709 luminance of linear red, green and blue (ITU-R BT.709-6)."""

_PQ_PEAK_NITS = 10000.0
_PQ_M1 = 2610 / 16384
_PQ_M2 = 2523 / 4096 * 128
_PQ_C1 = 3424 / 4096
_PQ_C2 = 2413 / 4096 * 32
_PQ_C3 = 2392 / 4096 * 32

PU21_MIN_NITS = 0.005
PU21_MAX_NITS = 10000.0
# Parameter set "banding_glare" of the encoder that the authors publish, as of 2020-02-06.
_PU21_BANDING_GLARE = (
    0.353487901,
    0.3734658629,
    8.277049286e-05,
    0.9062562627,
    0.09150303166,
    0.9099517204,
    596.3148142,
)

_PREVIEW_KEY = 0.18
_PREVIEW_WHITE_QUANTILE = 0.995
_PREVIEW_SAMPLES = 1 << 20


def srgb_to_linear(encoded: Tensor) -> Tensor:
    """Decode sRGB: ``v / 12.92`` up to 0.04045, ``((v + 0.055) / 1.055)^2.4`` above.

    Args:
        encoded: floating-point tensor of any shape, sRGB-encoded, nominally in [0, 1]; values
            outside follow the same formula (the straight line below 0).

    Returns:
        Tensor of the same shape and dtype, linear light, 1.0 = encoded 1.0.

    References:
        IEC 61966-2-1:1999.

    >>> srgb_to_linear(torch.tensor([0.0, 0.04045, 1.0]))
    tensor([0.0000, 0.0031, 1.0000])
    """
    _require_float(encoded, "encoded")
    # The clamp keeps the branch that is not taken, and so its gradient, finite.
    power = ((encoded.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(encoded <= 0.04045, encoded / 12.92, power)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Encode as sRGB: ``12.92 v`` up to 0.0031308, ``1.055 v^(1/2.4) - 0.055`` above.

    Args:
        linear: floating-point tensor of any shape, linear light, 1.0 = white; values above 1.0
            follow the same formula and are not clipped.

    Returns:
        Tensor of the same shape and dtype, sRGB-encoded, 1.0 = linear 1.0.

    References:
        IEC 61966-2-1:1999.

    >>> linear_to_srgb(torch.tensor([0.0, 0.18, 1.0]))
    tensor([0.0000, 0.4614, 1.0000])
    """
    _require_float(linear, "linear")
    power = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, linear * 12.92, power)


def luminance(image: Tensor) -> Tensor:
    """Return ``Y = 0.2126 R + 0.7152 G + 0.0722 B``.

    Args:
        image: (..., 3, H, W) floating point, linear Rec.709, any unit.

    Returns:
        (..., 1, H, W), the unit of ``image``.

    Raises:
        ValueError: ``image`` has no channel dimension of size 3 at -3.

    >>> luminance(torch.ones(3, 2, 2)).shape
    torch.Size([1, 2, 2])
    """
    _require_float(image, "image")
    if image.dim() < 3 or image.shape[-3] != 3:
        raise ValueError(f"image: expected shape (..., 3, H, W), got {tuple(image.shape)}")
    red, green, blue = image.unbind(-3)
    weight_red, weight_green, weight_blue = LUMINANCE_WEIGHTS
    return (weight_red * red + weight_green * green + weight_blue * blue).unsqueeze(-3)


def pq_encode(nits: Tensor) -> Tensor:
    """Encode absolute light with the perceptual quantizer (the inverse EOTF of ST 2084).

    ``V = ((c1 + c2 y^m1) / (1 + c3 y^m1))^m2`` with ``y = nits / 10000``.

    Args:
        nits: floating-point tensor of any shape, cd/m²; clamped to [0, 10000]. The derivative is
            infinite at 0.

    Returns:
        Tensor of the same shape and dtype, in [0, 1].

    References:
        SMPTE ST 2084:2014; ITU-R BT.2100-2, table 4.

    >>> pq_encode(torch.tensor([100.0, 203.0, 10000.0]))
    tensor([0.5081, 0.5807, 1.0000])
    """
    _require_float(nits, "nits")
    power = (nits / _PQ_PEAK_NITS).clamp(0.0, 1.0) ** _PQ_M1
    return ((_PQ_C1 + _PQ_C2 * power) / (1 + _PQ_C3 * power)) ** _PQ_M2


def pq_decode(encoded: Tensor) -> Tensor:
    """Decode the perceptual quantizer (the EOTF of ST 2084), the inverse of :func:`pq_encode`.

    ``nits = 10000 (max(v - c1, 0) / (c2 - c3 v))^(1/m1)`` with ``v = V^(1/m2)``.

    Args:
        encoded: floating-point tensor of any shape; clamped to [0, 1].

    Returns:
        Tensor of the same shape and dtype, cd/m², in [0, 10000].

    References:
        SMPTE ST 2084:2014; ITU-R BT.2100-2, table 4.

    >>> pq_decode(torch.tensor([0.0, 1.0]))
    tensor([    0., 10000.])
    """
    _require_float(encoded, "encoded")
    power = encoded.clamp(0.0, 1.0) ** (1 / _PQ_M2)
    ratio = (power - _PQ_C1).clamp(min=0.0) / (_PQ_C2 - _PQ_C3 * power)
    return _PQ_PEAK_NITS * ratio ** (1 / _PQ_M1)


def pu21_encode(nits: Tensor) -> Tensor:
    """Encode absolute light perceptually uniformly with PU21 ("banding + glare").

    ``V = p7 (((p1 + p2 L^p4) / (1 + p3 L^p4))^p5 - p6)``. 100 cd/m² gives about 256, so that
    metrics made for 8-bit pictures keep their meaning; their peak is 256 by convention, and
    brighter light goes beyond it, up to 595.39 at 10000 cd/m².

    Args:
        nits: floating-point tensor of any shape, cd/m²; clamped to [0.005, 10000], where the
            gradient is zero outside.

    Returns:
        Tensor of the same shape and dtype, in PU21 units, 0 to 595.39.

    References:
        Mantiuk and Azimi, PU21: A novel perceptually uniform encoding for adapting existing quality
        metrics for HDR, Picture Coding Symposium 2021, doi 10.1109/PCS50896.2021.9477471; the
        constants are those of https://github.com/gfxdisp/pu21.

    >>> pu21_encode(torch.tensor([0.005, 100.0, 10000.0], dtype=torch.float64)).round(decimals=1)
    tensor([  0.0000, 256.4000, 595.4000], dtype=torch.float64)
    """
    _require_float(nits, "nits")
    p1, p2, p3, p4, p5, p6, p7 = _PU21_BANDING_GLARE
    power = nits.clamp(PU21_MIN_NITS, PU21_MAX_NITS) ** p4
    return p7 * (((p1 + p2 * power) / (1 + p3 * power)) ** p5 - p6)


def mu_law(linear: Tensor, mu: float = 5000.0) -> Tensor:
    """Compress with the µ-law: ``log(1 + µ x) / log(1 + µ)``.

    Args:
        linear: floating-point tensor of any shape, linear light; 1.0 maps to 1.0, values below 0
            are clamped to 0, values above 1.0 follow the same formula.
        mu: strength of the compression, above 0.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        ValueError: ``mu`` is not above 0.

    References:
        Kalantari and Ramamoorthi, Deep High Dynamic Range Imaging of Dynamic Scenes, ACM TOG 36(4),
        2017.

    >>> mu_law(torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    _require_float(linear, "linear")
    if not mu > 0:
        raise ValueError(f"mu: expected a number above 0, got {mu!r}")
    return torch.log1p(mu * linear.clamp(min=0.0)) / math.log1p(mu)


def tone_map(image: Tensor) -> Tensor:
    """Render an HDR image as an sRGB preview with the photographic operator, global form.

    ``L = 0.18 Y / exp(mean(log Y))`` is the exposed luminance, ``L (1 + L / Lw²) / (1 + L)`` the
    displayed one, and the colour channels keep their ratio to it. ``Lw`` is the 99.5th percentile
    of L, at least 1, so the brightest half percent burns out. The exposure is chosen for each image
    alone, so a preview says nothing about absolute luminance.

    Args:
        image: (3, H, W) or (B, 3, H, W) floating point, linear Rec.709, any unit; values below 0
            are taken as 0.

    Returns:
        Tensor of the same shape and dtype, sRGB-encoded in [0, 1]. A black image stays black.

    Raises:
        ValueError: the shape is another one, or a value is not finite.

    References:
        Reinhard, Stark, Shirley and Ferwerda, Photographic Tone Reproduction for Digital Images,
        SIGGRAPH 2002, equations 1, 2 and 4. What differs: the percentile as the white point; large
        images are measured on every n-th pixel (about a million of them).

    >>> preview = tone_map(torch.rand(3, 8, 8) * 50)
    >>> bool((preview >= 0).all() and (preview <= 1).all())
    True
    """
    _require_float(image, "image")
    if image.dim() not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(
            f"image: expected shape (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}"
        )
    if not torch.isfinite(image).all():
        raise ValueError("image: expected finite values, got NaN or infinity")
    if image.dim() == 4:
        previews = [tone_map(one) for one in image]
        return torch.stack(previews) if previews else image.clone()
    return tone_mapping(image)(image)


def tone_mapping(image: Tensor) -> Callable[[Tensor], Tensor]:
    """Choose the exposure of `tone_map` for an image.

    Args:
        image: (3, H, W) floating point, finite, linear Rec.709; a thinned-out copy of the image to
            render will do.

    Returns:
        What renders the image, or a part of it (3, h, w), as `tone_map` does.
    """
    samples = luminance(_scene(image)).flatten()
    samples = samples[:: max(1, samples.numel() // _PREVIEW_SAMPLES)]
    samples = samples[samples > 0]
    if samples.numel() == 0:
        return torch.zeros_like
    exposure = _PREVIEW_KEY / samples.log().mean().exp()
    rank = max(1, math.ceil(_PREVIEW_WHITE_QUANTILE * samples.numel()))
    white = (exposure * samples.kthvalue(rank).values).clamp(min=1.0)

    def render(part: Tensor) -> Tensor:
        scene = _scene(part)
        exposed = exposure * luminance(scene)
        compression = (1 + exposed / white**2) / (1 + exposed)
        display = (scene * exposure * compression).clamp(0.0, 1.0)
        return linear_to_srgb(display).clamp(0.0, 1.0).to(part.dtype)

    return render


def _scene(image: Tensor) -> Tensor:
    """Light, at least 0; half precision would lose the product of a sun and its exposure."""
    return image.clamp(min=0.0).to(torch.promote_types(image.dtype, torch.float32))


def _require_float(value: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point tensor, got {value.dtype}; "
            "8-bit code values are divided by 255 first"
        )
