"""Launch parameters of the fused head: heuristics that can be explained, as pure functions."""

from dataclasses import dataclass

__all__ = ["HeadLaunch", "forward_launch", "whole_rows"]

# Taps of a block: the width of its product, and vectors that a program holds.
_TAPS = (16, 32)
# Loads of the input in a block; compile time grows with their square, and more spill (56 bytes at
# 31x31, sm_100).
_MOST_LOADS = 96
# A program's features stay on the multiprocessor, if they take no more bytes.
_FEATURE_BYTES = 2**15
_PIXELS = 128


@dataclass(frozen=True)
class HeadLaunch:
    """A program's tile of pixels, channels, and blocks of taps: ``rows`` rows of ``columns`` taps,
    padded to ``taps``."""

    tile: tuple[int, int]
    channels: int
    rows: int
    columns: int
    taps: int
    feature_block: int
    resident: bool  # whether one block holds all features, for the whole program
    num_warps: int


def forward_launch(
    kernel_size: tuple[int, int],
    channels_per_group: int,
    features: int,
    itemsize: int,
    matrix: bool,
    precision: str,
) -> HeadLaunch:
    """Up to four channels; one pixel a thread and blocks of taps that waste least of the product.

    Without a product two pixels a thread where registers hold them: each weight is loaded for
    both.
    """
    channels = min(channels_per_group, 4)
    if not matrix:
        rows, columns = whole_rows(kernel_size, 16)
        # two pixels spill in float64 (8 bytes at 5x5, sm_80 and sm_90)
        tile = (8, 32) if itemsize < 8 else (4, 32)
        return HeadLaunch(tile, channels, rows, columns, 16, 16, False, 4)
    most = _FEATURE_BYTES // (_PIXELS * itemsize)
    if precision == "tf32x3":
        most //= 2  # two terms of each feature (336 bytes spilled else, sm_100)
    feature_block = min(most, max(16, 1 << (features - 1).bit_length()))
    resident = features <= feature_block
    rows, columns, taps = _tap_block(kernel_size, channels)
    return HeadLaunch((4, 32), channels, rows, columns, taps, feature_block, resident, 4)


def whole_rows(kernel_size: tuple[int, int], most: int) -> tuple[int, int]:
    """Rows and columns of a block of at most ``most`` taps: rows of the filter, or equal parts of
    one."""
    height, width = kernel_size
    parts = -(-width // most)
    columns = -(-width // parts)
    return max(1, min(most // columns, height)), columns


def _tap_block(kernel_size: tuple[int, int], channels: int) -> tuple[int, int, int]:
    height, width = kernel_size
    columns = min(width, _TAPS[-1])
    if channels * columns > _MOST_LOADS:
        columns = _TAPS[0]
    choices = []
    for taps in _TAPS:
        rows = min(taps // columns, height, max(1, _MOST_LOADS // (channels * columns)))
        if rows > 0:
            blocks = -(-height // rows) * -(-width // columns)
            # the padding of the last block counts too; fewer blocks where it is the same
            choices.append((blocks * taps, blocks, rows, taps))
    _, _, rows, taps = min(choices)
    return rows, columns, taps
