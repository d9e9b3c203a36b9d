"""The index arithmetic as pure functions, against brute force over every output and tap."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from kpnops._decoupled_filter import geometry
from kpnops._decoupled_filter.geometry import (
    PADDING_MODES,
    Window,
    bands,
    border_readers,
    output_sizes,
    source_index,
)

# size, kernel, stride, dilation; the last two reach beyond the image several times
AXES = [
    (7, 3, 1, 1),
    (7, 4, 1, 1),
    (8, 5, 2, 1),
    (9, 3, 3, 2),
    (5, 1, 2, 1),
    (3, 5, 1, 3),
    (2, 7, 1, 2),
]


def readers(size: int, output: int, window: Window, source: int) -> list[set[int]]:
    """For each tap, the padded positions that some output reads through it and that stand for input
    position ``source``."""
    before = window.before[0]
    found = []
    for i in range(window.kernel_size[0]):
        offset = i * window.dilation[0] - before
        read = {y * window.stride[0] + offset for y in range(output)}
        found.append({u for u in read if source_index(u, size, window.padding_mode) == source})
    return found


def axis_cases():
    for (size, kernel, stride, dilation), mode in itertools.product(AXES, PADDING_MODES):
        window = Window((kernel, 1), (stride, 1), (dilation, 1), mode)
        for output in set(output_sizes(size, stride)) - {0}:
            after = window.after((size, 1), (output, 1))[0]
            if mode == "reflect" and max(window.before[0], after) >= size:
                continue
            yield pytest.param(size, output, window, id=f"{mode}-{size}-{kernel}-{stride}-{output}")


@pytest.mark.parametrize(("size", "output", "window"), list(axis_cases()))
def test_bands_cover_the_axis_and_count_the_readers(size, output, window):
    before, after = window.before[0], window.after((size, 1), (output, 1))[0]
    reach = (window.kernel_size[0] - 1) * window.dilation[0] - before
    pieces = bands(size, before, after, window.padding_mode)
    covered = [q for band in pieces for q in range(band.start, band.stop)]
    assert covered == list(range(size))
    most = border_readers(size, before, reach, window.padding_mode)
    for band in pieces:
        for q in range(band.start, band.stop):
            for found in readers(size, output, window, q):
                assert found <= {q} or band.border
                assert len(found) <= most


def test_readers_of_a_border_do_not_grow_with_a_reach_beyond_the_image():
    """Taps a billion pixels away must not mean a billion steps for each pixel of the border."""
    counts = [border_readers(5, 10**9, 10**9, mode) for mode in ("replicate", "circular")]
    assert counts == [5, 1]


@pytest.mark.parametrize(("size", "output", "window"), list(axis_cases()))
def test_after_is_the_last_position_read(size, output, window):
    before = window.before[0]
    last = max(
        y * window.stride[0] + i * window.dilation[0] - before
        for y in range(output)
        for i in range(window.kernel_size[0])
    )
    assert window.after((size, 1), (output, 1))[0] == max(0, last - (size - 1))


@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("dilation", [1, 3, 9, 10, 11, 1000, 1001, 2**31 - 1])
def test_short_dilations_read_the_same_pixels(dilation, size, mode):
    window = Window((4, 3), dilation=(dilation, dilation), padding_mode=mode)
    short = window.within((size, size))
    assert max(short.dilation) < 2 * size or short == window
    for axis in (0, 1):
        for y in range(size):
            read, same = (
                [
                    source_index(y + i * w.dilation[axis] - w.before[axis], size, mode)
                    for i in range(w.kernel_size[axis])
                ]
                for w in (window, short)
            )
            assert read == same


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_source_index_agrees_with_torch_pad(mode):
    line = torch.arange(5.0)
    padded = F.pad(line[None, None], (4, 4), mode=mode)[0, 0]
    expected = [int(value) for value in padded]
    actual = [source_index(position, 5, mode) for position in range(-4, 9)]
    assert actual == expected


def test_source_index_marks_zero_padding():
    assert [source_index(p, 2, "zeros") for p in (-1, 0, 1, 2)] == [-1, 0, 1, -1]


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize(("stride", "scale"), [(1, 1), (2, 1), (3, 1), (1, 2)])
def test_readers_of_rows_hold_all_that_read_them(stride, scale, mode):
    """Rounded either way with a stride, under and over, mirrored and wrapped."""
    for size, kernel, dilation in itertools.product((1, 2, 5, 8), (1, 2, 3, 4), (1, 2)):
        window = Window((kernel, 1), (stride, 1), (dilation, 1), mode, scale).within((size, 1))
        if mode == "reflect" and window.reach(0) >= size:
            continue
        counts = {size * scale} if scale > 1 else set(output_sizes(size, stride)) - {0}
        for outputs, first in itertools.product(counts, range(size)):
            for last in range(first + 1, size + 1):
                found = geometry.readers(window, 0, slice(first, last), size, outputs)
                held = {y % outputs for y in range(found.start, found.stop)}
                assert found.stop - found.start <= outputs
                assert mode == "circular" or 0 <= found.start <= found.stop <= outputs
                for y, tap in itertools.product(range(outputs), range(kernel)):
                    offset = tap * window.dilation[0] - window.before[0]
                    source = source_index(y * stride // scale + offset, size, mode)
                    assert y in held or not first <= source < last


@pytest.mark.parametrize(("stride", "scale"), [(1, 1), (2, 1), (3, 1), (1, 2)])
def test_rows_part_the_output_as_the_input(stride, scale):
    window = Window((3, 3), (stride, 1), scale=scale)
    for size, height in itertools.product((1, 5, 8, 9), (1, 2, 3)):
        counts = {size * scale} if scale > 1 else set(output_sizes(size, stride)) - {0}
        for outputs in counts:
            parts = [
                window.centred(slice(first, min(first + height, size)), size, outputs)
                for first in range(0, size, height)
            ]
            assert [y for part in parts for y in range(part.start, part.stop)] == list(
                range(outputs)
            )
