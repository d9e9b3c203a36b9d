import csv
import dataclasses
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from dkpn.data import EvaluationPair, evaluation_pairs, make_evaluation_pair
from dkpn.evaluate import (
    CAMERA_ORACLE,
    COLUMNS,
    LDR,
    Evaluation,
    bootstrap_over_scenes,
    evaluate,
)
from dkpn.scenes import generate_scenes

pytest.importorskip("PIL.Image", reason="Pillow makes the JPEG files")

HDR_DATA = Path(os.environ.get("KPNOPS_HDR_DATA", "../shared/hdr"))
PASSES = 60.0  # dB: what the truth must score at least, by the protocol


@pytest.fixture(scope="module")
def pairs() -> list[EvaluationPair]:
    scenes = generate_scenes(6, (64, 80))
    return [make_evaluation_pair(s, f"scene{i // 2}__crop{i}.exr") for i, s in enumerate(scenes)]


class Truth:
    """A method that knows: it finds the truth by the photo it is given."""

    def __init__(self, pairs: list[EvaluationPair]):
        self.truths = {pair.input.tobytes(): pair.target for pair in pairs}

    def __call__(self, photo: np.ndarray) -> np.ndarray:
        return self.truths[photo.tobytes()]


@pytest.fixture(scope="module")
def evaluation(pairs) -> Evaluation:
    truth = Truth(pairs)
    methods = {
        "truth": truth,
        "scaled": lambda photo: truth(photo) * np.float32(1e-3),
        "bent": lambda photo: truth(photo) ** np.float32(1.4),
        "clipped truth": lambda photo: truth(photo).clip(0, 1),
    }
    return evaluate(pairs, methods)


# --- the judge judges itself --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["truth", "scaled"])
@pytest.mark.parametrize("column", COLUMNS)
def test_the_truth_passes_on_every_image_in_every_column(evaluation, method, column):
    assert evaluation.values(method, column).min() > PASSES


@pytest.mark.parametrize("column", ["gain", "clipped"])
@pytest.mark.parametrize("method", ["bent", "clipped truth", LDR, CAMERA_ORACLE])
def test_what_is_not_the_truth_fails(evaluation, method, column):
    assert evaluation.values(method, column).max() < PASSES


def test_the_gain_is_fitted(evaluation):
    np.testing.assert_allclose(evaluation.values("truth", "gain_factor"), 1.0, rtol=1e-6)
    np.testing.assert_allclose(evaluation.values("scaled", "gain_factor"), 1e3, rtol=1e-6)


def test_a_wrong_gain_is_seen(pairs, monkeypatch):
    monkeypatch.setattr("dkpn.evaluate.fit_gain", lambda *_: 1.05)
    broken = evaluate(pairs, {"truth": Truth(pairs)})
    assert broken.values("truth", "gain").max() < PASSES


def test_the_references_are_what_they_say(pairs, evaluation):
    assert evaluation.methods[:2] == (LDR, CAMERA_ORACLE)
    assert evaluate(pairs[:1], {}).methods == (LDR, CAMERA_ORACLE)
    # The oracle knows the curve, so it is nearer wherever the curve is not sRGB's.
    other = np.array([pair.camera.curve != "srgb" for pair in pairs])
    assert other.any()
    gap = evaluation.values(CAMERA_ORACLE, "gain") - evaluation.values(LDR, "gain")
    assert gap[other].mean() > 0
    # With range left out, even the truth is no better than what the clipping leaves.
    ceiling = evaluation.mean("clipped truth", "clipped")
    assert evaluation.mean(CAMERA_ORACLE, "clipped") < ceiling + 1


def test_an_image_without_clipped_pixels_has_an_empty_cell(pairs, tmp_path):
    dark = np.minimum(pairs[0].input, 200)
    unclipped = dataclasses.replace(pairs[0], name="dark", input=dark)
    result = evaluate([unclipped, pairs[1]], {})
    values = result.values(LDR, "clipped")
    assert math.isnan(values[0])
    assert result.mean(LDR, "clipped") == values[1]
    result.write_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["clipped"] == row["clipped_crf"] == ""
    assert float(row["gain"]) > 0
    nothing = evaluate([unclipped], {})
    assert math.isnan(nothing.mean(LDR, "clipped"))
    assert "nan" not in nothing.table()


def test_fewer_than_100_usable_pixels_name_the_image(pairs):
    burnt = dataclasses.replace(pairs[0], input=np.full_like(pairs[0].input, 255))
    with pytest.raises(ValueError, match=r"image 'scene0__crop0', method 'LDR': .* at least 100"):
        evaluate([burnt], {})


# --- results that are no results ----------------------------------------------------------------


def spoiled(value: float):
    def method(photo: np.ndarray) -> np.ndarray:
        result = photo.astype(np.float32)
        result[5, 6, 1] = value
        return result

    return method


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (spoiled(np.nan), ValueError, "expected finite values, got 1 NaN and 0 infinite"),
        (spoiled(np.inf), ValueError, "expected finite values, got 0 NaN and 1 infinite"),
        (lambda photo: photo[1:].astype(np.float32), ValueError, r"expected shape \(64, 80, 3\)"),
        (lambda photo: photo, TypeError, "expected a floating-point numpy array, got uint8"),
        (
            lambda photo: photo.tolist(),
            TypeError,
            "expected a floating-point numpy array, got list",
        ),
        (lambda photo: 0.0 * photo, ValueError, "expected light in the well-exposed pixels"),
    ],
)
def test_wrong_results_name_image_and_method(pairs, method, error, message):
    with pytest.raises(error, match=f"image 'scene0__crop0', method 'net': .*{message}"):
        evaluate(pairs, {"net": method})


def test_a_method_cannot_change_what_the_others_see(pairs):
    def vandal(photo: np.ndarray) -> np.ndarray:
        result = photo.astype(np.float32) + 1
        photo[:] = 0
        return result

    first = evaluate(pairs[:1], {"vandal": vandal, "truth": Truth(pairs)})
    assert first.mean("truth", "gain") > PASSES


def test_names_that_would_be_mistaken(pairs):
    for name in (LDR, CAMERA_ORACLE):
        with pytest.raises(ValueError, match=f"methods: '{name}' is the name of a reference row"):
            evaluate(pairs, {name: Truth(pairs)})
    with pytest.raises(ValueError, match="data: two images are named 'scene0__crop0'"):
        evaluate([pairs[0], pairs[0]], {})
    with pytest.raises(ValueError, match="data: expected at least one image"):
        evaluate([], {})


# --- what is written ----------------------------------------------------------------------------


def test_csv_has_one_line_for_each_image_and_method(evaluation, pairs, tmp_path):
    evaluation.write_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(pairs) * 6
    assert [(row["image"], row["method"]) for row in rows[:2]] == [
        ("scene0__crop0", LDR),
        ("scene0__crop0", CAMERA_ORACLE),
    ]
    assert {row["scene"] for row in rows} == {"scene0", "scene1", "scene2"}
    written = [float(row["crf"]) for row in rows if row["method"] == "bent"]
    assert written == evaluation.values("bent", "crf").tolist()
    with pytest.raises(FileNotFoundError, match="create it first"):
        evaluation.write_csv(tmp_path / "no" / "a.csv")


def test_table_shows_the_means_and_the_differences(evaluation):
    table = evaluation.table()
    assert "mean of 6 images of 3 scenes" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(line) for line in rows[:8]}) == 1  # aligned
    for method in evaluation.methods:
        (line,) = [line for line in rows[2:8] if line.startswith(f"| {method} ")]
        shown = [float(cell) for cell in re.findall(r"-?\d+\.\d\d(?= )", line)]
        assert shown == [round(evaluation.mean(method, column), 2) for column in COLUMNS]
    differences = rows[8:]
    assert not any(line.startswith(f"| {LDR} ") for line in differences)
    over = evaluation.over("truth", "gain")
    assert f"{over.mean:+.2f} [{over.low:+.2f}, {over.high:+.2f}]" in table


def test_inputs_are_saved_as_they_were(pairs, tmp_path):
    seen = []
    evaluate(pairs[:2], {}, save_inputs=tmp_path / "a" / "b", progress=seen.append)
    files = sorted((tmp_path / "a" / "b").iterdir())
    assert [file.name for file in files] == ["scene0__crop0.jpg", "scene0__crop1.jpg"]
    assert [file.read_bytes() for file in files] == [pair.jpeg for pair in pairs[:2]]
    assert [pair.name for pair in seen] == ["scene0__crop0", "scene0__crop1"]


def test_a_folder_is_evaluated_by_its_files(tmp_path):
    hdr_io = pytest.importorskip("dkpn.hdr_io")
    pytest.importorskip("OpenEXR", reason="the codec of .exr files")
    for index, scene in enumerate(generate_scenes(2, 48)):
        hdr_io.write_hdr(tmp_path / f"scene{index}.exr", scene)
    truth = Truth(list(evaluation_pairs(tmp_path)))
    result = evaluate(tmp_path, {"truth": truth})
    assert [row.image for row in result.measurements] == ["scene0"] * 3 + ["scene1"] * 3
    assert result.values("truth", "gain").min() > PASSES
    with pytest.raises(FileNotFoundError, match="no such folder"):
        evaluate(tmp_path / "no", {})


def test_unknown_methods_are_named(evaluation):
    with pytest.raises(ValueError, match=r"method: expected one of LDR, camera oracle, .* got 'x'"):
        evaluation.mean("x", "gain")


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


# --- real pictures ------------------------------------------------------------------------------


@pytest.mark.skipif(not HDR_DATA.is_dir(), reason=f"no HDR pictures in {HDR_DATA}")
def test_the_truth_passes_on_real_pictures():
    pytest.importorskip("imagecodecs", reason="the codec of .hdr files")
    folder = HDR_DATA / "val"
    pairs = list(evaluation_pairs(folder, sorted(folder.iterdir())[::18]))
    result = evaluate(pairs, {"truth": Truth(pairs)})
    for column in COLUMNS:
        assert result.values("truth", column).min() > PASSES
        assert result.values(LDR, column).max() < PASSES
