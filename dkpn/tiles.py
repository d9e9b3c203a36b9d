"""Reconstruction in tiles: any image in bounded memory, with the result of the whole image.

What the network knows of the image as a whole is computed once, from the reduced image, and handed
to every tile. Around its core each tile sees as many more pixels as a result depends on
(:func:`reach`), so that its core is what the whole image would give, up to the rounding of
convolutions that sum in another order. A panorama's tiles see its other side beyond its left and
right edge.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dkpn.config import DKPNConfig

if TYPE_CHECKING:
    from dkpn.model import DKPN

# Memory that each pixel of a tile takes while it is reconstructed on a CPU, in bytes: measured
# (2026-11, float32, the largest of it) as 568, 647 and 1206 with 3, 5 and 9 taps a side and 722
# with twice the channels; this line lies above all of them, by 10 % with the default.
_BYTES, _BYTES_PER_TAP, _BYTES_PER_CHANNEL = 430.0, 10.5, 9.6
_SHARE_OF_FREE_MEMORY = 0.5
_SMALLEST_CORE = 64  # pixels


@dataclass(frozen=True)
class Tile:
    """Part of an image: what is computed and what is kept, both in pixels of the image.

    Args:
        top, bottom, left, right: of what is kept; the end is not included.
        seen_top, seen_bottom, seen_left, seen_right: of what the network sees; in a panorama the
            columns may lie beyond the image, on its other side.
    """

    top: int
    bottom: int
    left: int
    right: int
    seen_top: int
    seen_bottom: int
    seen_left: int
    seen_right: int


def reach(config: DKPNConfig) -> int:
    """How many pixels away, at most, a pixel can change a result: a multiple of ``size_multiple``.

    Args:
        config: of the network.
    """
    if config.head == "preliminary":
        return 0
    # A cell of the coarsest scale for where a pixel lies in it: cells of finer scales are inside.
    radius = config.kernel_size // 2 + config.size_multiple - 1
    scales = len(config.channel_multipliers)
    for scale in range(scales):
        blocks = config.encoder_blocks[scale]
        if scale < scales - 1:
            blocks += config.decoder_blocks[scale]
        # Two convolutions a block; stem and head at the first scale.
        cells = 2 * blocks + (2 if scale == 0 else 0)
        radius += cells * config.unshuffle * 2**scale
    return math.ceil(radius / config.size_multiple) * config.size_multiple


def tile_side(
    config: DKPNConfig, max_memory: float | None = None, device: torch.device | str = "cpu"
) -> int:
    """Side of the square that the network may see at once.

    Args:
        config: of the network.
        max_memory: GiB that the reconstruction may take; by default half of what is free.
        device: where the network lies.

    Returns:
        Pixels, a multiple of ``size_multiple``, large enough for some core.

    Raises:
        ValueError: ``max_memory`` is not enough for the smallest tile.
    """
    limit = (
        max_memory * 2**30
        if max_memory is not None
        else _SHARE_OF_FREE_MEMORY * _free_memory(torch.device(device))
    )
    per_pixel = bytes_per_pixel(config)
    multiple = config.size_multiple
    side = int(math.sqrt(max(limit, 0.0) / per_pixel)) // multiple * multiple
    smallest = 2 * reach(config) + max(_SMALLEST_CORE, multiple)
    if side < smallest:
        if max_memory is None:
            return smallest
        needed = smallest**2 * per_pixel / 2**30
        raise ValueError(
            f"max_memory: {max_memory:g} GiB is not enough for the smallest tile of this network, "
            f"which takes {needed:.2f} GiB; allow at least {math.ceil(needed * 100) / 100:.2f}"
        )
    return side


def bytes_per_pixel(config: DKPNConfig) -> float:
    """Memory that the reconstruction takes for each pixel that the network sees at once."""
    taps = config.kernel_size**2 * (3 if config.head == "undecoupled" else 1)
    channels = config.channels[0] / config.unshuffle**2
    return _BYTES + _BYTES_PER_TAP * (taps + config.channel_numbers) + _BYTES_PER_CHANNEL * channels


def plan_tiles(
    height: int, width: int, side: int, halo: int, multiple: int, panorama: bool = False
) -> Iterator[Tile]:
    """Cover an image with tiles, row by row.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        side: of what the network may see at once, pixels; a multiple of ``multiple``.
        halo: what a core needs around it, pixels; a multiple of ``multiple``.
        multiple: tiles begin at multiples of this.
        panorama: whether the left and right edge of the image meet.

    Returns:
        The tiles; their cores cover each pixel once.
    """
    rows = list(_spans(height, side, halo, multiple))
    columns = list(_spans(width, side, halo, multiple, panorama))
    for top, bottom, seen_top, seen_bottom in rows:
        for left, right, seen_left, seen_right in columns:
            yield Tile(top, bottom, left, right, seen_top, seen_bottom, seen_left, seen_right)


def _spans(
    size: int, side: int, halo: int, multiple: int, wraps: bool = False
) -> Iterator[tuple[int, int, int, int]]:
    """Core and seen range of each tile along one axis: start, end, seen start, seen end."""
    extra = 2 * halo if wraps else 0
    if size + extra <= side:
        yield 0, size, -halo if wraps else 0, size + halo if wraps else size
        return
    core = max(side - 2 * halo, multiple)
    for start in range(0, size, core):
        end = min(start + core, size)
        seen_start, seen_end = start - halo, end + halo
        if not wraps:
            seen_start, seen_end = max(seen_start, 0), min(seen_end, size)
        yield start, end, seen_start, seen_end


def reconstruct_tiles(
    model: "DKPN",
    image: Tensor,
    store: Callable[[Tile, Tensor], object],
    *,
    side: int,
    panorama: bool = False,
    progress: Callable[[float], object] | None = None,
) -> None:
    """Reconstruct one image tile by tile, on a GPU in half precision.

    Args:
        model: the network.
        image: (3, H, W) on any device: uint8 or uint16 code values, or floating point in [0, 1];
            sRGB-encoded.
        store: called with each tile and its result, (3, h, w) float32 on the network's device,
            linear, 1.0 = clip level.
        side: from :func:`tile_side`.
        panorama: whether the left and right edge of the image meet.
        progress: called after each tile with the share of the image that is done.
    """
    config, device = model.config, next(model.parameters()).device
    height, width = image.shape[-2:]
    halo, multiple = reach(config), config.size_multiple
    pooled = model.pool(reduced(image, model.POOLED_SIDE).to(device))
    tiles = list(plan_tiles(height, width, side, halo, multiple, panorama))
    for number, tile in enumerate(tiles, start=1):
        rows = image[:, tile.seen_top : tile.seen_bottom]
        if tile.seen_left < 0 or tile.seen_right > width:
            columns = torch.arange(tile.seen_left, tile.seen_right) % width
            seen = rows.index_select(2, columns.to(image.device))
        else:
            seen = rows[:, :, tile.seen_left : tile.seen_right]
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            result = model(encoded(seen).to(device)[None], pooled).result[0]
        top, left = tile.top - tile.seen_top, tile.left - tile.seen_left
        core = result[:, top : top + tile.bottom - tile.top, left : left + tile.right - tile.left]
        store(tile, core)
        if progress is not None:
            progress(number / len(tiles))


def encoded(image: Tensor) -> Tensor:
    """Code values as float32 in [0, 1]."""
    largest = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(image.dtype)
    return image.float() if largest is None else image.float() / largest


def reduced(image: Tensor, side: int) -> Tensor:
    """Average an image (3, H, W) of any size down to ``side`` pixels: (1, 3, h, w) in [0, 1].

    The image is read in strips of rows, so that no floating-point copy of it is made.
    """
    height, width = image.shape[-2:]
    longest = max(height, width)
    if longest <= side:
        return encoded(image)[None]
    shape = tuple(max(1, round(size * side / longest)) for size in (height, width))
    # As F.interpolate(mode="area"): row r averages from floor(r H / h) to ceil((r + 1) H / h).
    rows = []
    for row in range(shape[0]):
        start = row * height // shape[0]
        end = -(-(row + 1) * height // shape[0])
        strip = encoded(image[:, start:end])
        rows.append(F.interpolate(strip[None], (1, shape[1]), mode="area"))
    return torch.cat(rows, dim=2)


def _free_memory(device: torch.device) -> float:
    """Bytes of memory that programs can still have; 4 GiB where the system does not say."""
    if device.type == "cuda":
        # What PyTorch keeps of earlier pictures is free for the next one.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
