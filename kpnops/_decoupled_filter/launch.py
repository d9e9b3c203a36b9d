"""Launch parameters: how much a program owns and how many warps run it.

Heuristics that can be explained, kept apart from kernels and launchers: every function is pure. The
limit is registers: a program must hold its taps without spilling, which the compile-only tests
check for every configuration that these functions can give.
"""

from dataclasses import dataclass

import torch

__all__ = [
    "MAX_UNROLLED_SIDE",
    "MAX_UNROLLED_TAPS",
    "MAX_UNROLLED_TAPS_FLOAT64",
    "GatherLaunch",
    "TileLaunch",
    "channel_image_launch",
    "channel_with_filters",
    "filters_fit",
    "filters_launch",
    "forward_launch",
    "fused_fits",
    "fused_launch",
    "gather_channels_launch",
    "gather_input_launch",
    "gather_taps_launch",
    "mix_launch",
]

# Above this an unrolled tap loop spills and compiles for tens of seconds; in float64, 49 taps spill
# on gfx1100.
MAX_UNROLLED_TAPS = 49
MAX_UNROLLED_TAPS_FLOAT64 = 32
# A longer side needs more row pointers than registers hold beside the taps (49 x 1 spills).
MAX_UNROLLED_SIDE = 12
# Registers of a thread that NVIDIA's assembler may use, where that is stated: with no bound it
# keeps what inner loops do not need in local memory, to fit one more block on a multiprocessor (8
# to 40 bytes at as little as 32 registers, Triton 3.7.1). Long unrolled tap loops do better
# without: told of 255, it hoists loads until those spill.
MAX_REGISTERS = 255
# As many as leave room for three programs of 128 threads on a multiprocessor.
MAX_REGISTERS_OF_THREE = 168
# Groups of at most this many channels get all gradients from one kernel.
MAX_FUSED_CHANNELS = 4


@dataclass(frozen=True)
class TileLaunch:
    """A tile of ``rows`` rows of ``block_w`` pixels, run by ``num_warps`` warps."""

    rows: int
    block_w: int
    num_warps: int
    max_registers: int | None = None


@dataclass(frozen=True)
class GatherLaunch:
    """``block_p`` pixels times ``block_n`` channels or taps, run by ``num_warps`` warps."""

    block_p: int
    block_n: int
    num_warps: int
    max_registers: int | None = None


def _width(width: int, widest: int) -> tuple[int, int]:
    """Pixels and warps along a row: narrow images should not waste most of a program's lanes."""
    if width <= 64:
        return 64, 2
    if width <= 128 or widest == 128:
        return 128, 4
    return 256, 4


def _bound(taps: int) -> int | None:
    return MAX_REGISTERS if taps <= 4 else None


def forward_launch(
    kernel_size: tuple[int, int],
    width: int,
    dtype: torch.dtype,
    padding_mode: str,
    transposed: bool = False,
    softmax: bool = False,
) -> TileLaunch:
    """Forward, and gradient of the input: rows * taps spatial values a pixel in registers."""
    taps = kernel_size[0] * kernel_size[1]
    values = taps * dtype.itemsize // 4
    rows = 4 if values <= 9 else 2 if values <= 25 else 1
    if rows == 2 and padding_mode != "zeros":
        rows = 1  # with two rows of 25 taps their index arithmetic spills (16 to 24 bytes, sm_90)
    # One pixel a thread where the statistics of all shifted pixels are loaded too: with two, 5 x 5
    # taps take 254 or 255 registers (sm_90).
    widest = 128 if rows == 1 or (transposed and softmax) else 256
    bound = _bound(taps)
    if kernel_size == (3, 3) and rows == 4 and padding_mode == "zeros" and not transposed:
        bound = MAX_REGISTERS_OF_THREE  # 187 without it (sm_90); other kernel sizes would spill
    return TileLaunch(rows, *_width(width, widest), bound)


def filters_launch(taps: int, width: int, dtype: torch.dtype) -> TileLaunch:
    """Gradients of the filters: one accumulator and up to one spatial value for each tap."""
    values = 2 * taps * dtype.itemsize // 4
    return TileLaunch(1, *_width(width, 256 if values <= 18 else 128), _bound(taps))


def channel_with_filters(taps: int, dtype: torch.dtype) -> bool:
    """Whether the gradient of a 4-D channel filter fits into the kernel of the spatial filter's.

    With 48 float32 taps both spill (8 to 40 bytes, sm_90 and sm_100).
    """
    return taps * dtype.itemsize // 4 <= 36


def filters_fit(taps: int, padding_mode: str, dtype: torch.dtype, softmax: bool) -> bool:
    """Whether the unrolled gradient of the spatial filter stays in registers.

    With 49 taps and the index arithmetic of other paddings it does not (8 bytes, sm_100). A softmax
    needs the taps beside their gradients, as ``channel_with_filters`` does.
    """
    if softmax:
        return taps * dtype.itemsize // 4 <= 36
    return padding_mode == "zeros" or taps <= 36


def fused_fits(channels_per_group: int, kernel_size: tuple[int, int], softmax: bool) -> bool:
    """Whether one kernel gives all gradients.

    Under softmax more than 8 columns of taps, which it unrolls, spill (4x10: 8 bytes, 4x12: 16,
    sm_90).
    """
    if softmax and kernel_size[1] > 8:
        return False
    return channels_per_group <= MAX_FUSED_CHANNELS


def fused_launch(width: int) -> TileLaunch:
    """All gradients at once for few channels, in flat tiles whose shifted reads hit the cache.

    One pixel a thread.
    """
    if width <= 32:
        return TileLaunch(4, 32, 4, MAX_REGISTERS)
    return TileLaunch(4, 64, 8, MAX_REGISTERS)


def channel_image_launch(width: int) -> TileLaunch:
    """Gradient of a 3-D channel filter: one accumulator for each tap; ``rows`` are walked, not
    held."""
    block_w, num_warps = _width(width, 128)
    return TileLaunch(64, block_w, num_warps)


def gather_channels_launch(channels_per_group: int) -> GatherLaunch:
    """General forward: a block of pixels times a block of channels."""
    if channels_per_group >= 8:
        return GatherLaunch(64, 8, 4, MAX_REGISTERS)
    block_c = min(4, 1 << (channels_per_group - 1).bit_length())
    return GatherLaunch(256, block_c, 4, MAX_REGISTERS)


def gather_input_launch(channels_per_group: int) -> GatherLaunch:
    """General gradient of the input: two values a thread.

    With a bound of 128 registers it uses at most 121 and spills nothing.
    """
    block_c = 4 if channels_per_group >= 4 else 2 if channels_per_group >= 2 else 1
    return GatherLaunch(256 // block_c, block_c, 4, max_registers=128)


def gather_taps_launch(taps: int) -> GatherLaunch:
    """General gradients of the filters: a block of pixels times a block of taps."""
    return GatherLaunch(64, 16 if taps > 4 else 4, 4, MAX_REGISTERS)


def mix_launch(channels: int, dtype: torch.dtype) -> GatherLaunch:
    """Mixing matrix: a block of pixels times all ``channels`` of its other side.

    At most 16 values a thread; with 32 channels of 128 pixels gfx1100 spills (36 bytes).
    """
    block_n = 1 << (channels - 1).bit_length()
    values = block_n * dtype.itemsize // 4
    block_p = 256 if values <= 4 else 128 if values <= 16 else 64
    return GatherLaunch(block_p, block_n, 4, MAX_REGISTERS)
