"""What the kernels share. The index arithmetic stands in ``geometry.py`` as plain Python."""

import triton
import triton.language as tl


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
    """64-bit offset of a pixel given by 32-bit indices."""
    return row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3]


@triton.jit
def candidate_position(index, candidate, size, turns_before, PADDING: tl.constexpr):
    """The ``candidate``-th padded position that reads input ``index``, and whether there is such a
    one.

    Candidate 0 is the index itself. ``turns_before`` is the padding before the image ("replicate")
    or the whole turns in it ("circular").
    """
    position = index
    exists = (candidate == 0) | (index < 0)
    if PADDING == "replicate":
        before = (candidate <= turns_before) & (index == 0)
        after = (candidate > turns_before) & (index == size - 1)
        outside = tl.where(before, -candidate, size - 1 + candidate - turns_before)
        position = tl.where(candidate == 0, index, outside)
        exists = (candidate == 0) | before | after
    elif PADDING == "reflect":
        mirrored = tl.where(candidate == 1, -index, 2 * (size - 1) - index)
        position = tl.where(candidate == 0, index, mirrored)
        exists = (
            (candidate == 0)
            | ((candidate == 1) & (index != 0))
            | ((candidate == 2) & (index != size - 1))
        )
    elif PADDING == "circular":
        turns = tl.where(candidate <= turns_before, -candidate, candidate - turns_before)
        position = index + turns * size
        exists = (index >= 0) | (candidate == 0)
    return position, exists


@triton.jit
def output_index(position, offset, stride, size):
    """The output that reads padded ``position`` through a tap at ``offset``, and whether there is
    one."""
    distance = position - offset
    index = distance // stride
    return index, (distance >= 0) & (distance % stride == 0) & (index < size)


@triton.jit
def as_stored(value, ptr):
    """``value`` in the dtype that ``ptr`` points to."""
    if ptr.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)  # Triton's interpreter has no float64 to bfloat16
    return value.to(ptr.dtype.element_ty)
