"""Index arithmetic of the op as pure functions: which input pixel a tap reads, and which pixels lie
near the border.

Everything here is plain Python on sizes, shared by the validation, the CPU path and the launchers
of the kernels.
"""

from dataclasses import dataclass

PADDING_MODES = ("zeros", "replicate", "reflect", "circular")
COMBINE_MODES = ("mul", "add")


@dataclass(frozen=True)
class Window:
    """How the taps of a filter lie on the input.

    Output row ``y`` and tap row ``i`` read input row ``y * stride[0] + (i - (Kh - 1) // 2) *
    dilation[0]``, columns likewise.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"

    @property
    def taps(self) -> int:
        """Number of taps, ``Kh * Kw``."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def before(self) -> tuple[int, int]:
        """Rows and columns that the first output pixel reads before the input."""
        return (
            before_padding(self.kernel_size[0], self.dilation[0]),
            before_padding(self.kernel_size[1], self.dilation[1]),
        )

    def after(self, input_size: tuple[int, int], output_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that the last output pixel reads beyond the input."""
        return (
            after_padding(
                input_size[0], output_size[0], self.kernel_size[0], self.stride[0], self.dilation[0]
            ),
            after_padding(
                input_size[1], output_size[1], self.kernel_size[1], self.stride[1], self.dilation[1]
            ),
        )


def before_padding(kernel: int, dilation: int) -> int:
    """Reach of the taps before the centre, in pixels."""
    return (kernel - 1) // 2 * dilation


def after_padding(size: int, output: int, kernel: int, stride: int, dilation: int) -> int:
    """Pixels beyond ``size`` that the last of ``output`` positions reads (0 if none)."""
    last = (output - 1) * stride + (kernel - 1 - (kernel - 1) // 2) * dilation
    return max(0, last - (size - 1))


def output_sizes(size: int, stride: int) -> tuple[int, int]:
    """The two output sizes that are allowed along an axis: floor and ceiling of ``size /
    stride``."""
    return size // stride, (size + stride - 1) // stride


def source_index(position: int, size: int, padding_mode: str) -> int:
    """Input index that padded ``position`` reads, or -1 where zero padding supplies the value."""
    if 0 <= position < size:
        return position
    if padding_mode == "zeros":
        return -1
    if padding_mode == "replicate":
        return min(max(position, 0), size - 1)
    if padding_mode == "reflect":
        return -position if position < 0 else 2 * (size - 1) - position
    return position % size  # circular wraps as many times as it must


@dataclass(frozen=True)
class Band:
    """Positions ``start <= q < stop`` of an axis, each read through at most ``candidates`` padded
    positions."""

    start: int
    stop: int
    candidates: int


def candidate_count(size: int, before: int, after: int, padding_mode: str) -> int:
    """Most padded positions that can stand for one input position (see
    ``kernels_index.candidate_position``)."""
    if padding_mode == "zeros" or before + after == 0:
        return 1
    if padding_mode == "reflect":
        return 3
    if padding_mode == "circular":
        return 1 + wraps(before, size) + wraps(after, size)
    return 1 + before + after


def wraps(padding: int, size: int) -> int:
    """Whole turns that ``padding`` positions beyond an axis of ``size`` take under circular
    padding."""
    return (padding + size - 1) // size


def bands(size: int, before: int, after: int, padding_mode: str) -> list[Band]:
    """Split an axis into border and interior bands.

    Interior positions are read through one padded position only, themselves; border positions also
    through those outside the image that the padding maps to them.
    """
    count = candidate_count(size, before, after, padding_mode)
    if count == 1:
        return [Band(0, size, 1)]
    if padding_mode == "replicate":
        low, high = int(before > 0), int(after > 0)
    elif padding_mode == "reflect":
        low, high = (before + 1 if before else 0), (after + 1 if after else 0)
    else:  # circular: what is read beyond one end lies at the other
        low, high = after, before
    if low + high >= size:
        return [Band(0, size, count)]
    pieces = [Band(0, low, count), Band(low, size - high, 1), Band(size - high, size, count)]
    return [band for band in pieces if band.stop > band.start]
