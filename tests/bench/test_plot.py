"""Plots: pictures in which something is drawn."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.cases import BACKWARD, FORWARD, FORWARD_BACKWARD, Case
from bench.plot import plots
from bench.plot_curves import draw_kernel_sizes, operations_per_byte
from bench.results import DEVICE
from tests.bench.rows import CASE, GPU_HARDWARE, measured, run

CPU_ROWS = [
    measured(),
    measured("eager_unfold", 100.0),
    measured("compiled_slices", 2.0),
    measured(pass_name=FORWARD_BACKWARD),
]
GPU_ROWS = [
    measured(provider, milliseconds * kernel_size, case, pass_name, DEVICE, fraction_of_copy=0.5)
    for kernel_size in (3, 5)
    for case in (
        Case(1, 3, 1080, 1920, kernel_size),
        Case(1, 3, 512, 512, kernel_size),
        Case(1, 64, 512, 512, kernel_size),
    )
    for pass_name in (FORWARD, FORWARD_BACKWARD)
    for provider, milliseconds in (("kpnops", 0.1), ("eager_slices", 0.7), ("device_copy", 0.05))
]


def is_drawn(path):
    with Image.open(path) as image:
        image.load()
        # Something is drawn beside the white ground.
        return image.width > 500 and len(np.unique(np.asarray(image.convert("L")))) > 8


@pytest.mark.parametrize("rows", [CPU_ROWS, CPU_ROWS[:3], CPU_ROWS[:1]], ids=["2", "1", "row"])
def test_a_cpu_has_one_picture(rows, tmp_path):
    (path,) = plots(run(rows), tmp_path / "cpu-2core.json")
    assert [file.name for file in tmp_path.iterdir()] == [path.name] == ["cpu-2core.png"]
    assert is_drawn(path)


def test_a_gpu_has_one_picture_for_each_question(tmp_path):
    paths = plots(run(GPU_ROWS, GPU_HARDWARE), tmp_path / "nvidia-h200.json")
    suffixes = ["ratios", "roofline", "kernel-size", "channels", "resolution"]
    assert [path.name for path in paths] == [f"nvidia-h200-{suffix}.png" for suffix in suffixes]
    assert all(is_drawn(path) for path in paths)


def test_nothing_is_drawn_of_what_was_not_measured(tmp_path):
    assert plots(run([]), tmp_path / "cpu-2core.json") == []
    assert plots(run([], GPU_HARDWARE), tmp_path / "nvidia-h200.json") == []
    # One kernel size is a point, no curve.
    assert draw_kernel_sizes(run(GPU_ROWS[:3], GPU_HARDWARE)) is None


def test_picture_grows_with_the_number_of_cases_and_is_split(tmp_path):
    heights = []
    for count in (1, 12, 41):
        rows = [measured(case=replace(CASE, batch=batch + 1)) for batch in range(count)]
        first, *others = plots(run(rows), tmp_path / "cpu-2core.json")
        assert len(others) == (1 if count > 40 else 0)
        with Image.open(first) as image:
            heights.append(image.height)
    assert heights[1] > 2 * heights[0]


# By hand, float32, C=3, K=3, per pixel: 27 products and 72 bytes forward; 81 and 132 backward.
@pytest.mark.parametrize(
    ("pass_name", "expected"),
    [(FORWARD, 27 / 72), (BACKWARD, 81 / 132), (FORWARD_BACKWARD, 108 / 204)],
)
def test_intensity_counts_products_over_bytes_that_must_move(pass_name, expected):
    row = measured(case=Case(1, 3, 40, 30, 3), pass_name=pass_name)
    assert operations_per_byte(row) == pytest.approx(expected)
