"""A page to look at results: one HTML file that needs nothing else.

It has an exposure slider, a split between photo and result, luminance in false colours, histograms,
and the masks and filters of the pixel under the pointer.
"""

import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dkpn.color import WHITE_NITS, srgb_to_linear
from dkpn.hdr_io import write_atomically
from dkpn.infer import encoded_batch
from dkpn.model import DKPN
from dkpn.rgbe_file import shared_exponent

MOST_BYTES = 30_000_000
"""Size of a page, at most."""
LONGEST_SIDE = 2048
"""Of a picture in a page, pixels, at most."""
GRID = 128
"""Filters are kept on a grid of at most so many rows and columns."""

_SHRINK = 0.8  # of the pictures' sides, until the page is small enough
_SMALLEST_SIDE = 16
_LOW, _HIGH, _BINS_PER_STOP = -12, 8, 4  # as in the page
_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_TEMPLATE = Path(__file__).parent / "page" / "viewer.html"


@dataclass(frozen=True)
class View:
    """One result to look at.

    Args:
        name: shown in the list of pictures.
        result: (H, W, 3) float32, linear Rec.709, 1.0 = white of the photo.
        photo: (H, W, 3), sRGB-encoded, uint8, uint16 or float in [0, 1]: what it was made from.
        insight: masks and filters, from :func:`look_inside`.
    """

    name: str
    result: np.ndarray
    photo: np.ndarray | None = None
    insight: "Insight | None" = None


@dataclass(frozen=True)
class Insight:
    """What the network saw and predicted.

    Args:
        masks: (h, w, 2) float32 in [0, 1]: over- and under-exposure, the largest of the channels.
        taps: (rows, columns, K²) float32: spatial filters on a grid, or None.
        gains: (rows, columns, 3) float32, linear: channel gains on the same grid, or None.
    """

    masks: np.ndarray
    taps: np.ndarray | None
    gains: np.ndarray | None


@torch.inference_mode()
def look_inside(model: DKPN, photo: np.ndarray) -> Insight:
    """Masks and filters of a photo, reduced to the size of a page's pictures.

    Args:
        model: the network; its filters are shown if they are K² taps and three gains a pixel.
        photo: (H, W, 3), sRGB-encoded; uint8, uint16 or float in [0, 1].

    Returns:
        Masks and filters.
    """
    device = next(model.parameters()).device
    image = _shrunk(encoded_batch(photo), LONGEST_SIDE // 2)
    output = model(image.to(device))
    masks = output.masks[0].cpu().reshape(2, 3, *output.masks.shape[-2:]).amax(1)
    taps, gains = output.spatial_filter, output.channel_filter
    if taps is None or gains is None or gains.ndim != 4 or gains.shape[1] != 3:
        return Insight(masks.permute(1, 2, 0).numpy(), None, None)
    height, width = taps.shape[-2:]
    rows, columns = min(GRID, height), min(GRID, width)
    # The pixel in the middle of each cell of the grid.
    y = ((torch.arange(rows) + 0.5) * height / rows).long()
    x = ((torch.arange(columns) + 0.5) * width / columns).long()
    chosen = [t[0].cpu()[:, y][:, :, x].permute(1, 2, 0).numpy() for t in (taps, gains)]
    return Insight(masks.permute(1, 2, 0).numpy(), *chosen)


def reduced_view(view: View) -> View:
    """The same view, of pictures no larger than a page shows."""
    planes = torch.from_numpy(np.array(view.result.transpose(2, 0, 1)))[None].float()
    result = _shrunk(planes, LONGEST_SIDE)[0].permute(1, 2, 0).numpy()
    photo = view.photo
    if photo is not None:
        size = (result.shape[0], result.shape[1])
        codes = _shrunk(encoded_batch(photo), LONGEST_SIDE, size)[0].permute(1, 2, 0)
        photo = (codes * 255).round().byte().numpy()
    return replace(view, result=result, photo=photo)


def write_page(
    path: str | os.PathLike[str], views: Sequence[View], white_nits: float = WHITE_NITS
) -> None:
    """Write results as one HTML file of at most 30 MB that opens in any browser.

    Pictures are at most 2,048 pixels long, and smaller where there are many.

    Args:
        path: file to write; its folder exists.
        views: at least one.
        white_nits: cd/m² of 1.0.

    Raises:
        ValueError: no results, one that is not finite, or more than a page can hold.
        FileNotFoundError: the folder does not exist.
    """
    if not views:
        raise ValueError("views: expected at least one result to look at, got none")
    for view in views:
        if not np.isfinite(view.result).all():
            raise ValueError(f"{view.name}: expected finite values, got NaN or infinity")
    template = _TEMPLATE.read_text(encoding="utf-8")
    side = LONGEST_SIDE
    while True:
        pictures = [_picture(view, side, white_nits) for view in views]
        # "</" would end the script that holds the data.
        data = json.dumps(pictures, separators=(",", ":")).replace("</", "<\\/")
        page = template.replace("__DATA__", data).encode()
        if len(page) <= MOST_BYTES:
            break
        side = int(side * _SHRINK)
        if side < _SMALLEST_SIDE:
            raise ValueError(
                f"views: {len(views)} results do not fit into a page of {MOST_BYTES // 10**6} MB; "
                "look at fewer of them"
            )
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(page))


def _picture(view: View, side: int, white_nits: float) -> dict[str, Any]:
    planes = torch.from_numpy(np.ascontiguousarray(view.result.transpose(2, 0, 1))).float()[None]
    result = _shrunk(planes.clamp_min(0.0), side)[0].permute(1, 2, 0).numpy()
    height, width = result.shape[:2]
    mantissa, exponent = _radiance(result)
    picture: dict[str, Any] = {
        "name": view.name,
        "width": width,
        "height": height,
        "white": round(white_nits, 3),
        "mantissa": _image_url(mantissa, "PNG"),
        "exponent": _image_url(exponent, "PNG"),
        "histogram": {"result": _histogram(result)},
    }
    if view.photo is not None:
        photo = _shrunk(encoded_batch(view.photo), side, (height, width))
        codes = (photo[0] * 255).permute(1, 2, 0).round().byte().numpy()
        picture["photo"] = _image_url(codes, "JPEG", quality=92, subsampling="4:4:4")
        light = srgb_to_linear(photo)[0].permute(1, 2, 0).numpy()
        picture["histogram"]["photo"] = _histogram(light)
    if view.insight is not None:
        picture |= _insight(view.insight)
    return picture


def _insight(insight: Insight) -> dict[str, Any]:
    masks = np.zeros((*insight.masks.shape[:2], 3), np.uint8)
    masks[..., :2] = (insight.masks * 255).round()
    found: dict[str, Any] = {"masks": _image_url(masks, "PNG")}
    if insight.taps is not None and insight.gains is not None:
        rows, columns, taps = insight.taps.shape
        relative = insight.taps / insight.taps.max(axis=2, keepdims=True)
        stops = np.log2(np.maximum(insight.gains, 2.0**-7)) * 16
        found["filters"] = {
            "rows": rows,
            "columns": columns,
            "side": round(taps**0.5),
            "taps": _base64((relative * 255).round().astype(np.uint8)),
            "gains": _base64(stops.round().clip(-127, 127).astype(np.int8)),
        }
    return found


def _shrunk(image: Tensor, side: int, size: tuple[int, int] | None = None) -> Tensor:
    """Average (B, C, H, W) to at most ``side`` pixels, or to a size no larger than it is."""
    height, width = image.shape[-2:]
    if size is None:
        scale = min(1.0, side / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return image if size == (height, width) else F.interpolate(image, size, mode="area")


def _radiance(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radiance RGBE: (H, W, 3) and (H, W) uint8, value = mantissa · 2^(exponent - 136)."""
    mantissa, exponent = shared_exponent(image.astype(np.float64))
    exponent = exponent[..., 0]
    mantissa[exponent < -128] = 0.0  # less than the format holds
    return mantissa.astype(np.uint8), (exponent + 128).clip(0, 255).astype(np.uint8)


def _histogram(image: np.ndarray) -> list[int]:
    stops = np.log2(np.maximum(image @ _LUMA, 2.0**_LOW))
    bins = (_HIGH - _LOW) * _BINS_PER_STOP
    counts, _ = np.histogram(stops.clip(_LOW, _HIGH - 1e-3), bins, (_LOW, _HIGH))
    return counts.tolist()


def _image_url(pixels: np.ndarray, kind: str, **options: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
