"""What the kernels share. The index arithmetic stands in ``geometry.py`` as plain Python."""

import triton
import triton.language as tl

# What tells a launch which strip of a backward it makes (see ``strips.py``), or None: images from
# first_image, ``rows`` rows of the output from first_row. A workspace holds, of the same images,
# held_rows rows of the output from held_row.
STRIP = ["first_image", "first_row", "rows", "held_row", "held_rows"]
# Sizes of the general kernels, which one compiled kernel serves whatever they are.
SIZES = [
    "B",
    "C",
    "H",
    "W",
    "HO",
    "WO",
    "GROUPS",
    "kernel_h",
    "kernel_w",
    "stride_h",
    "stride_w",
    "dilation_h",
    "dilation_w",
    "before_h",
    "before_w",
    "scale",
    *STRIP,
]


@triton.jit
def source_index(position, size, PADDING: tl.constexpr):
    """Input index that a padded position reads, and whether it lies in the image (zero padding:
    maybe not).

    Positions that no output reads (beyond the reach, in the last tile) stay inside the image too.
    """
    index = position
    if PADDING == "reflect":
        index = tl.where(position < 0, -position, position)
        index = tl.where(index >= size, 2 * (size - 1) - index, index)
        index = tl.minimum(tl.maximum(index, 0), size - 1)
    elif PADDING == "replicate":
        index = tl.minimum(tl.maximum(position, 0), size - 1)
    elif PADDING == "circular":
        index = (position % size + size) % size
    return index, (index >= 0) & (index < size)


@triton.jit
def pixel_offset(row, column, strides):
    """64-bit offset of a pixel given by its indices."""
    return row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3]


@triton.jit
def tap_offset(tap, dilation, before, INDEX: tl.constexpr):
    """Offset of tap row or column ``tap`` from the centre of the filter."""
    return tap * dilation.to(INDEX) - before.to(INDEX)


@triton.jit
def centre_position(index, stride, scale, INDEX: tl.constexpr):
    """The position that the centre of the filter of output ``index`` reads."""
    return index * stride.to(INDEX) // scale.to(INDEX)


@triton.jit
def _centre_that_reads(index, number, offset, size, PADDING: tl.constexpr):
    """The ``number``-th centre from which a tap at ``offset`` may read ``index``, and whether there
    is one.

    Number 0 reads without padding where that can be: bands of the interior need no other.
    """
    centre = index - offset
    exists = (index >= 0) & (number == 0)
    if PADDING == "replicate":  # the ends are read from all centres beyond them
        low = (index == 0) & (offset <= 0)
        high = (index == size - 1) & (offset > 0)
        centre = tl.where(high, tl.maximum(centre, 0) + number, centre)
        centre = tl.where(low, tl.minimum(centre, size - 1) - number, centre)
        exists = exists | low | high
    elif PADDING == "reflect":
        mirrored = tl.where(number == 1, -index, 2 * (size - 1) - index)
        centre = tl.where(number == 0, index, mirrored) - offset
        exists = exists | ((number == 1) & (index != 0))
        exists = exists | ((number == 2) & (index != size - 1))
    elif PADDING == "circular":  # centres lie in the image, so that one turn is the right one
        centre = (centre % size + size) % size
    return centre, exists


@triton.jit
def reader(index, number, offset, size, stride, scale, outputs, PADDING: tl.constexpr):
    """The ``number``-th output that may read input ``index`` through a tap at ``offset``, and
    whether it does.

    The ``scale`` outputs that share a centre have consecutive numbers.
    """
    centre, exists = _centre_that_reads(index, number // scale, offset, size, PADDING)
    distance = centre * scale + number % scale
    output = distance // stride
    return output, exists & (distance >= 0) & (output * stride == distance) & (output < outputs)


@triton.jit
def split_program(pixels, second, BLOCK_P: tl.constexpr):
    """Split the program's number into a block of pixels (fastest), one of ``second`` and the rest,
    64-bit."""
    pid = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(pixels, BLOCK_P)
    pid_p = pid % blocks_p
    pid = pid // blocks_p
    return pid_p, pid % second, pid // second


@triton.jit
def pixel_tile(pid, pixels, width, INDEX: tl.constexpr, BLOCK_P: tl.constexpr):
    """Rows, columns and mask of the ``pid``-th block of pixels, flattened over rows and columns."""
    offs = pid * BLOCK_P + tl.arange(0, BLOCK_P)
    return (offs // width).to(INDEX), (offs % width).to(INDEX), offs < pixels


@triton.jit
def held_tile(pid, pixels, width, held_row, height, INDEX: tl.constexpr, BLOCK_P: tl.constexpr):
    """Rows, columns and mask of the ``pid``-th block of pixels of a workspace. Its rows begin at
    held_row of ``height``, before the first or not, and go on from the last to the first."""
    rows, columns, mask = pixel_tile(pid, pixels, width, INDEX, BLOCK_P)
    rows += held_row.to(INDEX)
    rows = tl.where(rows < 0, rows + height.to(INDEX), rows)
    rows = tl.where(rows >= height, rows - height.to(INDEX), rows)
    return rows, columns, mask


@triton.jit
def unwrapped_row(row, held_row, height, PADDING: tl.constexpr):
    """``row`` as a workspace counts it whose rows begin at held_row: on the other side of the image
    perhaps, under circular padding."""
    if PADDING == "circular":
        first = held_row.to(row.dtype)
        row = tl.where(row < first, row + height.to(row.dtype), row)
        row = tl.where(row >= first + height.to(row.dtype), row - height.to(row.dtype), row)
    return row


@triton.jit
def held_gradient(grad_ptr, first_image, held_row, grad_strides):
    """Where a gradient would begin of which a workspace holds images from first_image and rows from
    held_row."""
    return grad_ptr - (
        first_image.to(tl.int64) * grad_strides[0] + held_row.to(tl.int64) * grad_strides[2]
    )


@triton.jit
def as_stored(value, ptr):
    """``value`` in the dtype that ``ptr`` points to."""
    if ptr.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)  # Triton's interpreter has no float64 to bfloat16
    return value.to(ptr.dtype.element_ty)
