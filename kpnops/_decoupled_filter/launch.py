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
    "channels_of_a_program",
    "counts_parts",
    "filters_fit",
    "filters_launch",
    "forward_fits",
    "forward_launch",
    "fused_fits",
    "fused_launch",
    "fused_unrolled",
    "gather_channels_launch",
    "gather_input_launch",
    "gather_taps_launch",
    "input_fits",
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
# As many as leave room for two, three, four and six programs of 128 threads on a multiprocessor;
# for two, below what lets the assembler hoist loads until those spill.
MAX_REGISTERS_OF_TWO = 224
MAX_REGISTERS_OF_THREE = 168
MAX_REGISTERS_OF_FOUR = 128
MAX_REGISTERS_OF_SIX = 80
# Programs of 128 threads that keep a large GPU busy: two rounds of 4 for each of some 130
# multiprocessors.
MIN_PROGRAMS = 1024
# Groups of at most this many channels get all gradients from one kernel.
MAX_FUSED_CHANNELS = 4


@dataclass(frozen=True)
class TileLaunch:
    """A tile of ``block_h`` rows of ``block_w`` pixels, run by ``num_warps`` warps.

    A thread owns ``rows`` rows of ``pixels`` adjacent pixels (or several such pieces).
    """

    block_h: int
    block_w: int
    num_warps: int
    max_registers: int | None = None
    rows: int = 1
    pixels: int = 1


@dataclass(frozen=True)
class GatherLaunch:
    """``block_p`` pixels times ``block_n`` channels or taps, run by ``num_warps`` warps."""

    block_p: int
    block_n: int
    num_warps: int
    max_registers: int | None = None


def _bound(taps: int) -> int | None:
    return MAX_REGISTERS if taps <= 4 else None


def _tile(width: int, rows: int, pixels: int, max_registers: int | None) -> TileLaunch:
    """A tile as wide as narrow images, at most 64 pixels, with ``pixels`` of each row a thread.

    Halo rows of a tile are in the cache of its multiprocessor, and more of its columns are inside
    the image than those of one as wide as 256 pixels, which needs masks in all images up to twice
    as wide.
    """
    block_w = 64
    while block_w >= 16 and block_w // 2 >= width:
        block_w //= 2
    num_warps = {64: 4, 32: 2}.get(block_w, 1)
    if block_w == 8:
        rows = max(1, rows // 4)  # an image that narrow is rarely high
    block_h = 32 * pixels * num_warps // block_w * rows
    return TileLaunch(block_h, block_w, num_warps, max_registers, rows, pixels)


def forward_launch(
    kernel_size: tuple[int, int],
    width: int,
    dtype: torch.dtype,
    padding_mode: str,
    transposed: bool = False,
    softmax: bool = False,
    alignment: int = 16,
    with_gains: bool = True,
    same_strides: bool = True,
    converted: bool = False,
) -> TileLaunch:
    """Forward, and gradient of the input: 2 * rows * taps spatial values a thread in registers.

    ``alignment``: what all strides are multiples of, 16, 2 or 1; from 2 on adjacent pixels are
    loaded at once. 0 where they are not adjacent in memory: an address for each of their columns
    would fill the registers. ``converted``: some tensor has another dtype than sums.
    """
    taps = kernel_size[0] * kernel_size[1]
    values = taps * dtype.itemsize // 4
    rows = 4 if values <= 9 else 2 if values <= 25 else 1
    if padding_mode != "zeros" and values > (9 if softmax else 16):
        # Two spill: an index for each row and column of the border waits beside the taps (5x5: 8 to
        # 24 bytes, sm_80 to sm_100).
        rows = 1
    bound = MAX_REGISTERS if kernel_size[1] == 1 else _bound(taps)
    if padding_mode == "zeros" and values == taps and alignment and not softmax:
        # With less, or in other cases, it spills (sm_90; 5x5 with a filter per image: sm_80): taps
        # of other pixels, a multiplication for each tap, tensors that lie differently. So it does
        # where loads are not joined, or need a stride made even: 3x3 in 128 registers, and 5x5
        # if numbers are ``converted`` besides; ``transposed``, 3x3 then too (8 bytes, sm_100).
        few = with_gains and same_strides
        if kernel_size == (3, 3):
            few = few and alignment == 16 and not (transposed and converted)
            bound = MAX_REGISTERS_OF_FOUR if few else MAX_REGISTERS_OF_THREE
        elif (
            kernel_size == (5, 5) and few and not transposed and (alignment == 16 or not converted)
        ):
            bound = MAX_REGISTERS_OF_FOUR
    if padding_mode != "zeros" and 9 < values <= 36:
        # Left alone, it spills to reach 128 (5x5 and 6x6: 8 and 16 bytes, sm_100).
        bound = MAX_REGISTERS_OF_TWO
    if softmax and taps < values and (values > 36 or kernel_size == (3, 3)):
        # Left alone, it spills to reach 128 (3x3: 8 bytes, sm_90) or 168 (5x5: 8 bytes, sm_80).
        bound = MAX_REGISTERS_OF_TWO if values > 36 else MAX_REGISTERS_OF_THREE
    if softmax and taps == values == 49:
        bound = MAX_REGISTERS_OF_THREE  # left alone, it spills to reach 128 (8 bytes, sm_100)
    pixels = min(2, alignment + 1)
    if taps > 30 and padding_mode != "zeros":
        pixels = 1  # two spill: 6x6, sm_100; 7x7, gfx1100
    if transposed and with_gains and kernel_size[0] == MAX_UNROLLED_SIDE and taps == 48:
        pixels = 1  # two spill 8 bytes: 12x4, sm_80 and sm_90
    return _tile(width, rows, pixels, bound)


def channels_of_a_program(channels_per_group: int, tiles: int) -> int:
    """How many channels one program of the forward walks: all, unless that leaves a GPU idle.

    Fewer read the spatial filter again, from the cache.
    """
    most = max(4, channels_per_group * tiles // MIN_PROGRAMS)
    if most >= channels_per_group:
        return channels_per_group
    return next(count for count in range(most, 0, -1) if channels_per_group % count == 0)


def filters_launch(
    taps: int,
    width: int,
    dtype: torch.dtype,
    alignment: int = 16,
    padding_mode: str = "zeros",
    with_taps: bool = True,
    added: bool = False,
) -> TileLaunch:
    """Gradients of the filters: one accumulator and, ``with_taps``, one spatial value for each tap.

    ``with_taps``: under softmax, and for the gradient of a channel filter. 30 of both for two
    pixels spill 8 to 48 bytes (sm_80 to sm_100); with the indices of other paddings 25 of both, and
    36 accumulators (8 to 32, sm_80). ``added``: what the taps give is not multiplied by a gain.
    """
    words = taps * dtype.itemsize // 4
    rows = 2 if words <= 9 else 1
    if padding_mode == "zeros":
        most = 25 if with_taps else MAX_UNROLLED_TAPS
    else:
        most = 20 if with_taps else 30
    pixels = 2 if alignment > 1 and words <= most else 1
    bound = _bound(taps)
    if alignment == 0 and 9 < words <= 16:
        bound = MAX_REGISTERS_OF_THREE  # left alone, it spills to reach 72 (7x2: 8 bytes, sm_100)
    if with_taps and added and pixels == 2 and words == 25:
        bound = MAX_REGISTERS_OF_FOUR  # left alone, it spills on the way to it (16 bytes, sm_80)
    if added and not with_taps and words == 9:
        bound = MAX_REGISTERS_OF_SIX  # left alone, it spills to reach 64 (8 bytes, sm_100)
    return _tile(width, rows, pixels, bound)


def channel_with_filters(taps: int, padding_mode: str, dtype: torch.dtype) -> bool:
    """Whether the gradient of a 4-D channel filter fits into the kernel of the spatial filter's.

    With 48 float32 taps both spill (8 to 40 bytes, sm_90 and sm_100), with the indices of other
    paddings 36 (8 bytes, sm_80).
    """
    return taps * dtype.itemsize // 4 <= (36 if padding_mode == "zeros" else 30)


def filters_fit(taps: int, padding_mode: str, dtype: torch.dtype, softmax: bool) -> bool:
    """Whether the unrolled gradient of the spatial filter stays in registers.

    With 49 taps and the index arithmetic of other paddings it does not (8 bytes, sm_100). A softmax
    needs the taps beside their gradients, as ``channel_with_filters`` does.
    """
    if softmax:
        return taps * dtype.itemsize // 4 <= 36
    return padding_mode == "zeros" or taps <= 36


def forward_fits(
    taps: int, padding_mode: str, dtype: torch.dtype, softmax: bool, adjacent: bool
) -> bool:
    """Whether the unrolled forward stays in registers.

    Under softmax it holds all taps, and with padding the rows and columns that each reads: 49 taps
    spill 8 to 24 bytes (sm_80 and sm_90), with one pixel a thread. So they do with padding alone
    where neighbours in a row of some tensor are not ``adjacent`` in memory.
    """
    few = padding_mode == "zeros" or taps * dtype.itemsize // 4 <= 36
    return few or (adjacent and not softmax)


def input_fits(
    taps: int, dtype: torch.dtype, softmax: bool, adjacent: bool, with_gains: bool
) -> bool:
    """Whether the unrolled gradient of the input stays in registers.

    Under softmax it forms the probabilities of other pixels: 49 taps spill 624 bytes on sm_100. So
    do the addresses of the gains where neighbours in a row of some tensor are not ``adjacent`` in
    memory: 30 taps 16 bytes, 49 taps 256 (sm_90).
    """
    if with_gains and not adjacent and taps > 25:
        return False
    return not softmax or taps * dtype.itemsize // 4 <= 36


def fused_fits(channels_per_group: int, kernel_size: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether one kernel gives all gradients.

    In float64 long sides spill (2x12 on sm_100 under softmax: 8 bytes, 12x1 on gfx942: 1164), and
    so do 5x5 taps of 4 channels under softmax (gfx942: 28 bytes, gfx1100: 100).
    """
    if dtype == torch.float64:
        return max(kernel_size) <= 8 and channels_per_group < MAX_FUSED_CHANNELS
    return channels_per_group <= MAX_FUSED_CHANNELS


def fused_launch(
    columns: int,
    channels: int,
    width: int,
    dtype: torch.dtype,
    alignment: int = 16,
    softmax: bool = False,
    padding_mode: str = "zeros",
) -> TileLaunch:
    """All gradients at once for few channels, in flat tiles whose shifted reads hit the cache.

    ``columns`` of taps, ``channels`` of a group; two pixels a thread if a row of taps is unrolled
    whole.
    """
    single = dtype != torch.float64  # where two pixels would spill
    pixels = 2 if single and alignment > 1 and fused_unrolled(columns, dtype) == columns else 1
    padded_softmax = softmax and padding_mode != "zeros"
    if padded_softmax and columns > 5:
        pixels = 1  # 7x7: two spill 32 bytes (sm_100)
    block_w = 32 if width <= 32 else 64
    num_warps = 4 * block_w // pixels // 32
    few = single and columns <= 5 and channels <= 3
    # The statistics of pixels on the other side of the border take what is left (16 bytes, sm_90).
    few = few and not padded_softmax
    if padding_mode != "zeros" and columns == 4:
        few = False  # where dtypes differ it spills 8 bytes (3x4 and 5x4, sm_100)
    if columns == 5 and (softmax or padding_mode != "zeros"):
        few = False  # 8 to 32 bytes (5x5, sm_100)
    bound = MAX_REGISTERS_OF_THREE if few else MAX_REGISTERS
    return TileLaunch(4, block_w, num_warps, bound, pixels=pixels)


def fused_unrolled(columns: int, dtype: torch.dtype) -> int:
    """How many taps of a row of ``columns`` that kernel unrolls: all, or the largest divisor up to
    7, in float64 up to 5.

    More spill (4 x 12 taps, 4 channels: 8 bytes, sm_90; float64, 4 x 7: 136 to 284, AMD).
    """
    most = 5 if dtype == torch.float64 else 7
    return max(count for count in range(1, most + 1) if columns % count == 0)


def counts_parts(architecture: str) -> bool:
    """Whether the compiler is told how often that kernel walks a row of taps or part of it.

    AMD's would unroll all trips, where there are few channels, and fill the registers: 4x9 taps of
    3 channels spill 28 bytes (gfx1100), in float64 4x4 of 2 channels 172 and 5x5 of 3 channels
    3980 (gfx942).
    """
    return not architecture.startswith("gfx")


def channel_image_launch(
    taps: int, height: int, width: int, planes: int, dtype: torch.dtype, softmax: bool
) -> TileLaunch:
    """Gradient of a 3-D channel filter for ``planes`` images and channels: one accumulator for each
    tap; 64 rows are walked, not held, or fewer if a GPU would not be busy."""
    block_w, num_warps = (64, 2) if width <= 64 else (128, 4)
    rows = 64
    while rows > 8 and -(-height // rows) * -(-width // block_w) * planes < MIN_PROGRAMS // 2:
        rows //= 2
    # Left alone, it spills to reach 64 (8 bytes, sm_100).
    bound = MAX_REGISTERS_OF_SIX if softmax and taps * dtype.itemsize // 4 == 25 else None
    return TileLaunch(rows, block_w, num_warps, bound)


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
