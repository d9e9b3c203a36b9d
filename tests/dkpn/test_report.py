import csv
import math
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from dkpn.columns import COLUMNS, DEFAULT
from dkpn.report import CAMERA_ORACLE, LDR, Evaluation, Measurement, bootstrap_over_scenes

METHODS = (LDR, CAMERA_ORACLE, "net", "files")


def measurement(image: int, method: str, scores: Mapping[str, float]) -> Measurement:
    seconds, memory = (math.nan, math.nan) if method == "files" else (0.25, 17.4)
    return Measurement(
        image=f"scene{image // 2}__crop{image}",
        scene=f"scene{image // 2}",
        method=method,
        curve="srgb",
        jpeg_quality=90,
        truth_scale=math.nan,
        clipped_fraction=0.1,
        gain_factor=1.0,
        seconds=seconds,
        memory=memory,
        device_memory=math.nan,
        scores=scores,
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    rng = np.random.default_rng(0)
    measurements = [
        measurement(image, method, {name: 20 + index + rng.standard_normal() for name in DEFAULT})
        for image in range(6)
        for index, method in enumerate(METHODS)
    ]
    return Evaluation(tuple(measurements), METHODS)


def without(evaluation: Evaluation, *methods: str) -> Evaluation:
    rows = tuple(row for row in evaluation.measurements if row.method not in methods)
    return Evaluation(rows, tuple(name for name in METHODS if name not in methods))


def tables(text: str) -> list[dict[str, list[str]]]:
    """The cells of each Markdown table by the name in the first column."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for block in blocks:
        assert len({len(line) for line in block}) == 1  # aligned
    rows = [[line[1:-1].split("|") for line in block] for block in blocks]
    return [{row[0].strip(): [cell.strip() for cell in row[1:]] for row in one} for one in rows]


def test_a_single_scene_has_no_interval_and_the_table_says_why(evaluation):
    rows = tuple(row for row in evaluation.measurements if row.image.endswith("crop0"))
    text = Evaluation(rows, METHODS).table()
    assert "mean of 1 image of 1 scene." in text
    assert "Difference to the LDR row, of a single scene, so without an interval" in text
    assert "[" not in text


def test_the_table_of_means(evaluation):
    text = evaluation.table()
    assert "mean of 6 images of 3 scenes" in text
    means = tables(text)[0]
    headings = [COLUMNS[name].heading for name in DEFAULT]
    assert means["method"] == [*headings, "median s", "median MiB"]
    for method in METHODS:
        expected = [
            f"{evaluation.mean(method, name):.{COLUMNS[name].decimals}f}" for name in DEFAULT
        ]
        assert means[method][: len(DEFAULT)] == expected
    assert means["net"][-2:] == ["0.250", "17"]
    assert means["files"][-2:] == ["", ""]


def test_the_tables_of_differences(evaluation):
    _, to_ldr, between = tables(evaluation.table())
    assert list(to_ldr)[2:] == [CAMERA_ORACLE, "net", "files"]
    assert list(between)[2:] == ["net - camera oracle", "files - camera oracle", "files - net"]
    for cells, method, reference in (
        (to_ldr["files"], "files", LDR),
        (between["files - net"], "files", "net"),
    ):
        over = evaluation.over(method, "gain", reference)
        assert cells[0] == f"{over.mean:+.2f} [{over.low:+.2f}, {over.high:+.2f}]"
        assert over.mean == pytest.approx(
            evaluation.mean(method, "gain") - evaluation.mean(reference, "gain")
        )
        assert over.low < over.mean < over.high


def test_the_interval_of_a_difference_is_over_scenes(evaluation):
    difference = evaluation.values("net", "ssim") - evaluation.values("files", "ssim")
    expected = bootstrap_over_scenes(difference, np.repeat(["a", "b", "c"], 2))
    assert evaluation.over("net", "ssim", "files") == expected


def test_every_column_shown_has_its_unit(evaluation):
    text = evaluation.table()
    assert "gain, +CRF, clipped, clipped +CRF: PU21-PSNR in dB" in text
    assert "SSIM: PU21-SSIM, at most 1." in text
    assert "µ-law" not in text


def test_no_comparison_where_there_is_nothing_to_compare(evaluation):
    assert len(tables(without(evaluation, "net", "files").table())) == 2
    alone = without(evaluation, CAMERA_ORACLE, "net", "files")
    assert "no camera oracle row" in alone.table()


def test_costs_that_no_machine_told_are_left_out(evaluation):
    untold = tuple(replace(row, memory=math.nan) for row in evaluation.measurements)
    assert "median MiB" in evaluation.table()
    assert "GPU" not in evaluation.table()
    assert "MiB" not in Evaluation(untold, METHODS).table()


def test_csv_has_one_line_for_each_image_and_method(evaluation, tmp_path):
    evaluation.write_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * len(METHODS)
    assert [(row["image"], row["method"]) for row in rows[:2]] == [
        ("scene0__crop0", LDR),
        ("scene0__crop0", CAMERA_ORACLE),
    ]
    assert {row["scene"] for row in rows} == {"scene0", "scene1", "scene2"}
    written = [float(row["crf"]) for row in rows if row["method"] == "net"]
    assert written == evaluation.values("net", "crf").tolist()
    assert rows[0]["truth_scale"] == rows[3]["seconds"] == ""
    with pytest.raises(FileNotFoundError, match="create it first"):
        evaluation.write_csv(tmp_path / "no" / "a.csv")


def test_an_empty_cell_leaves_the_mean_and_the_difference():
    rows = []
    for image, clipped in enumerate((math.nan, 30.0, 32.0)):
        rows.append(measurement(image, LDR, {"clipped": clipped}))
        rows.append(measurement(image, "net", {"clipped": clipped + 1}))
    evaluation = Evaluation(tuple(rows), (LDR, "net"), ("clipped",))
    assert evaluation.mean(LDR, "clipped") == 31.0
    assert evaluation.over("net", "clipped").mean == 1.0
    empty = Evaluation(tuple(rows[:2]), (LDR, "net"), ("clipped",))
    assert math.isnan(empty.mean("net", "clipped"))
    assert not re.search("nan", empty.table())


def test_unknown_names_are_told(evaluation):
    with pytest.raises(ValueError, match=r"method: expected one of LDR, camera oracle, .* got 'x'"):
        evaluation.mean("x", "gain")
    with pytest.raises(ValueError, match="column: 'flip' was not measured"):
        evaluation.mean("net", "flip")


# --- the bootstrap ------------------------------------------------------------------------------


def test_bootstrap_resamples_scenes_not_images():
    rng = np.random.default_rng(0)
    of_scene = rng.standard_normal(30)
    scenes = np.repeat([f"s{i}" for i in range(30)], 10)
    values = np.repeat(of_scene, 10)
    over = bootstrap_over_scenes(values, scenes)
    assert over.mean == pytest.approx(of_scene.mean())
    # Ten crops that say the same say it once: the width is that of 30 values, not of 300. The
    # factor covers the percentile bootstrap's own error at 30 scenes.
    half_width = 1.96 * of_scene.std() / np.sqrt(30)
    assert (over.high - over.low) / 2 == pytest.approx(half_width, rel=0.1)
    assert bootstrap_over_scenes(values, scenes) == over


def test_bootstrap_weighs_images_equally():
    over = bootstrap_over_scenes(np.array([0.0, 0.0, 0.0, 4.0]), np.array(["a", "a", "a", "b"]))
    assert over.mean == 1.0
    assert (over.low, over.high) == (0.0, 4.0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_bootstrap_of_fewer_than_two_scenes_has_no_interval(count):
    over = bootstrap_over_scenes(np.ones(count), np.array(["a"] * count))
    assert math.isnan(over.mean) == (count == 0)
    assert math.isnan(over.low)
    assert math.isnan(over.high)
