import dataclasses
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dkpn.columns import COLUMNS, DEFAULT, JUDGED
from dkpn.data import EvaluationPair, evaluation_pairs, make_evaluation_pair
from dkpn.evaluate import evaluate, preliminary_only
from dkpn.infer import encoded_batch
from dkpn.model import DKPN
from dkpn.pairs import OwnPair, SavedResults
from dkpn.report import CAMERA_ORACLE, LDR, Evaluation
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
@pytest.mark.parametrize("column", JUDGED)
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


def test_an_image_without_clipped_pixels_has_an_empty_cell(pairs):
    dark = np.minimum(pairs[0].input, 200)
    unclipped = dataclasses.replace(pairs[0], name="dark", input=dark)
    result = evaluate([unclipped, pairs[1]], {})
    values = result.values(LDR, "clipped")
    assert math.isnan(values[0])
    assert result.mean(LDR, "clipped") == values[1]
    nothing = evaluate([unclipped], {})
    assert math.isnan(nothing.mean(LDR, "clipped"))
    assert "nan" not in nothing.table()


def test_fewer_than_100_usable_pixels_name_the_image(pairs):
    burnt = dataclasses.replace(pairs[0], input=np.full_like(pairs[0].input, 255))
    with pytest.raises(ValueError, match=r"image 'scene0__crop0', method 'LDR': .* at least 100"):
        evaluate([burnt], {})


# --- columns ------------------------------------------------------------------------------------


def test_the_judged_columns_are_always_measured_and_others_on_request(pairs):
    result = evaluate(pairs[:1], {}, metrics=["ssim_crf"])
    assert result.columns == ("ssim_crf",)
    assert set(result.measurements[0].scores) == {*JUDGED, "mu_law", "ssim_crf"}
    assert evaluate(pairs[:1], {}).columns == DEFAULT


def test_the_correction_undoes_a_bent_curve_in_its_columns_alone(evaluation):
    gain, corrected, clipped, clipped_corrected = (
        evaluation.mean("bent", column) for column in JUDGED
    )
    # A power of luminance is near enough to a cubic in PQ that most of the error goes.
    assert corrected > gain + 10
    assert clipped_corrected > clipped + 10


def test_the_structural_similarity_orders_the_methods(evaluation):
    assert evaluation.values("truth", "ssim").min() > 1 - 1e-6
    order = [evaluation.mean(method, "ssim") for method in ("truth", "clipped truth", LDR)]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("name", ["crf", "ssim"])
def test_a_measure_without_a_number_is_an_error(pairs, monkeypatch, name):
    broken = dataclasses.replace(COLUMNS[name], measure=lambda *_: math.nan)
    monkeypatch.setitem(COLUMNS, name, broken)
    with pytest.raises(ValueError, match=f"'scene0__crop0', method 'LDR': {name}: .* gave nan"):
        evaluate(pairs, {})


# --- the network, files and own pairs -----------------------------------------------------------


def test_preliminary_only_is_the_networks_own_preliminary_result(pairs):
    torch.manual_seed(0)
    model = DKPN()
    for parameter in model.parameters():  # an untrained curve would be sRGB's for every photo
        torch.nn.init.normal_(parameter, std=0.05)
    large = np.tile(pairs[0].input, (1, 8, 1))  # a side above what the pooled branch sees
    assert large.shape[1] > model.POOLED_SIDE
    for photo in (pairs[0].input, large):
        with torch.no_grad():
            expected = model(encoded_batch(photo)).preliminary
        actual = preliminary_only(model)(photo)
        np.testing.assert_array_equal(actual, expected[0].permute(1, 2, 0).numpy())
        assert not np.allclose(actual, model.infer(photo))


def test_results_in_files_are_judged_as_those_of_a_method(pairs, tmp_path):
    truth = Truth(pairs)
    for pair in pairs[:2]:
        np.save(tmp_path / f"{pair.name}.npy", pair.target.astype(np.float32) ** 1.4)
    results = {"saved": SavedResults(tmp_path)}
    methods = {"live": lambda photo: truth(photo) ** np.float32(1.4)}
    judged = evaluate(pairs[:2], methods, results=results)
    assert judged.methods == (LDR, CAMERA_ORACLE, "live", "saved")
    for column in DEFAULT:
        np.testing.assert_array_equal(judged.values("saved", column), judged.values("live", column))
    assert np.isnan(judged.values("saved", "seconds")).all()  # reading a file is not the method
    assert np.isfinite(judged.values("live", "seconds")).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a[1:], r"expected shape \(64, 80, 3\), got \(63, 80, 3\)"),
        (lambda a: np.where(a == a.max(), np.nan, a), "expected finite values"),
        (lambda a: 0 * a, "expected light in the well-exposed pixels"),
    ],
)
def test_wrong_results_in_files_name_the_file(pairs, tmp_path, spoil, message):
    file = tmp_path / f"{pairs[0].name}.npy"
    np.save(file, spoil(pairs[0].target))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}.* 'other': .*{message}"):
        evaluate(pairs[:1], {}, results={"other": SavedResults(tmp_path)})


def test_a_missing_result_names_the_file(pairs, tmp_path):
    np.save(tmp_path / f"{pairs[0].name}.npy", pairs[0].target)
    with pytest.raises(FileNotFoundError, match=r"scene0__crop1\.exr: no such file"):
        evaluate(pairs[:2], {}, results={"other": SavedResults(tmp_path)})


def own(pair: EvaluationPair) -> OwnPair:
    return OwnPair(pair.name, pair.scene, pair.input, pair.target, scale=1.0)


def test_own_pairs_have_no_camera_oracle(pairs):
    known = evaluate(pairs[:3], {"truth": Truth(pairs)})
    judged = evaluate([own(pair) for pair in pairs[:3]], {"truth": Truth(pairs)})
    assert judged.methods == (LDR, "truth")
    np.testing.assert_array_equal(judged.values(LDR, "gain"), known.values(LDR, "gain"))
    table = judged.table()
    assert "no camera oracle row" in table
    assert f"| {CAMERA_ORACLE}" not in table


def test_pairs_of_both_kinds_are_not_mixed(pairs, tmp_path):
    with pytest.raises(ValueError, match="'scene0__crop1' is a pair of another kind"):
        evaluate([pairs[0], own(pairs[1])], {})
    with pytest.raises(ValueError, match="save_inputs: the inputs of own pairs are files"):
        evaluate([own(pairs[0])], {}, save_inputs=tmp_path)


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
    saved = SavedResults.__new__(SavedResults)
    with pytest.raises(ValueError, match="methods: two are named 'net'"):
        evaluate(pairs, {"net": Truth(pairs)}, results={"net": saved})
    with pytest.raises(ValueError, match="data: two images are named 'scene0__crop0'"):
        evaluate([pairs[0], pairs[0]], {})
    with pytest.raises(ValueError, match="data: expected at least one image"):
        evaluate([], {})


# --- folders and files ---------------------------------------------------------------------------


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


# --- real pictures ------------------------------------------------------------------------------


@pytest.mark.skipif(not HDR_DATA.is_dir(), reason=f"no HDR pictures in {HDR_DATA}")
def test_the_truth_passes_on_real_pictures():
    pytest.importorskip("imagecodecs", reason="the codec of .hdr files")
    folder = HDR_DATA / "val"
    pairs = list(evaluation_pairs(folder, sorted(folder.iterdir())[::18]))
    result = evaluate(pairs, {"truth": Truth(pairs)})
    for column in JUDGED:
        assert result.values("truth", column).min() > PASSES
        assert result.values(LDR, column).max() < PASSES
