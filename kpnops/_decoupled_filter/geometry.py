"""Index arithmetic of the op as pure functions: which input pixel a tap reads, and which pixels lie
near the border.

Everything here is plain Python on sizes, shared by the validation, the CPU path and the launchers
of the kernels.
"""

from dataclasses import dataclass, replace

PADDING_MODES = ("zeros", "replicate", "reflect", "circular")
COMBINE_MODES = ("mul", "add")
NORMALIZE_MODES = (None, "softmax")


@dataclass(frozen=True)
class Window:
    """How the taps of a filter lie on the input.

    Output row ``y`` and tap row ``i`` read input row ``y * stride[0] // scale + (i - (Kh - 1) // 2)
    * dilation[0]``, columns likewise. One of stride and scale is 1.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"
    scale: int = 1

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

    def reach(self, axis: int) -> int:
        """How far taps reach to either side along an axis, in pixels of the input."""
        before = self.before[axis]
        return max(before, (self.kernel_size[axis] - 1) * self.dilation[axis] - before)

    def centred(self, rows: slice, size: int, outputs: int) -> slice:
        """Rows of the output whose filters are centred on ``rows`` of an input of ``size`` rows:
        they part its ``outputs`` rows as ``rows`` part the input's."""
        first, last = (
            min(-(-row * self.scale // self.stride[0]), outputs) for row in (rows.start, rows.stop)
        )
        return slice(first, outputs if rows.stop == size else last)

    def within(self, input_size: tuple[int, int]) -> "Window":
        """The window that reads the same pixels with dilations below twice the image's size.

        From one size on all taps but the central one lie outside, wherever the filter is; only
        where circular padding takes them depends on the dilation, through its remainder.
        """
        if self.dilation == (1, 1):  # the usual call: no new objects
            return self
        rows, columns = (
            _short_dilation(dilation, size, self.padding_mode)
            for dilation, size in zip(self.dilation, input_size, strict=True)
        )
        return replace(self, dilation=(rows, columns))

    def after(self, input_size: tuple[int, int], output_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that the last output pixel reads beyond the input."""
        rows, columns = (
            after_padding(
                input_size[axis],
                output_size[axis],
                self.kernel_size[axis],
                self.stride[axis],
                self.dilation[axis],
                self.scale,
            )
            for axis in (0, 1)
        )
        return rows, columns


def _short_dilation(dilation: int, size: int, padding_mode: str) -> int:
    if dilation < 2 * size or padding_mode == "reflect":  # which refuses a reach beyond the image
        return dilation
    return size + dilation % size if padding_mode == "circular" else size


def before_padding(kernel: int, dilation: int) -> int:
    """Reach of the taps before the centre, in pixels."""
    return (kernel - 1) // 2 * dilation


def after_padding(
    size: int, output: int, kernel: int, stride: int, dilation: int, scale: int = 1
) -> int:
    """Pixels beyond ``size`` that the last of ``output`` positions reads (0 if none)."""
    last = (output - 1) * stride // scale + (kernel - 1 - (kernel - 1) // 2) * dilation
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


def readers(window: Window, axis: int, part: slice, size: int, outputs: int) -> slice:
    """Output positions along an axis whose filters read one of ``part`` of ``size`` positions, and
    perhaps a few more.

    Under circular padding they go beyond the ``outputs`` positions, to the other side.
    """
    # mirrored, what lies after a position is read by taps that reach before it, and conversely
    first, last = part.start - window.reach(axis), part.stop + window.reach(axis)

    def output(centre: int) -> int:
        """The first that is centred there or beyond."""
        return min(-(-centre * window.scale // window.stride[axis]), outputs)

    if window.padding_mode != "circular":
        return slice(output(max(first, 0)), output(min(last, size)))
    if last - first >= size:
        return slice(0, outputs)
    return slice(
        output(first) if first >= 0 else output(first + size) - outputs,
        output(last) if last <= size else output(last - size) + outputs,
    )


@dataclass(frozen=True)
class Band:
    """Positions ``start <= q < stop`` of an axis; those of a border are read through the padding
    too."""

    start: int
    stop: int
    border: bool


def border_readers(size: int, before: int, reach: int, padding_mode: str) -> int:
    """Most outputs, in steps of the stride, that read one position of a border through one tap.

    Taps reach ``before`` and ``reach`` positions from their centre to either side (see
    ``kernels_index.reader``).
    """
    if padding_mode == "replicate":
        return min(size, 1 + max(before, reach))
    return 3 if padding_mode == "reflect" else 1


def bands(size: int, before: int, after: int, padding_mode: str) -> list[Band]:
    """Split an axis into border and interior bands.

    Interior positions are read through one padded position only, themselves; border positions also
    through those outside the image that the padding maps to them.
    """
    if padding_mode == "zeros" or before + after == 0:
        return [Band(0, size, False)]
    if padding_mode == "replicate":
        low, high = int(before > 0), int(after > 0)
    elif padding_mode == "reflect":
        low, high = (before + 1 if before else 0), (after + 1 if after else 0)
    else:  # circular: what is read beyond one end lies at the other
        low, high = after, before
    if low + high >= size:
        return [Band(0, size, True)]
    pieces = [Band(0, low, True), Band(low, size - high, False), Band(size - high, size, True)]
    return [band for band in pieces if band.stop > band.start]
