import numpy as np
import pytest
import torch

pytest.importorskip("PIL.Image", reason="Pillow reads photos")
pytest.importorskip("OpenEXR", reason="the codec of .exr files")

from dkpn.color import srgb_to_linear
from dkpn.data import EvaluationPair, make_evaluation_pair
from dkpn.hdr_io import write_hdr, write_png
from dkpn.metrics import fit_gain
from dkpn.pairs import SavedResults, fit_truth_scale, match_pairs, own_pairs
from dkpn.scenes import generate_scenes

# The largest error of the fitted clip level on 127 real crops was half a stop.
HALF_A_STOP = 2**0.5


@pytest.fixture(scope="module")
def made() -> list[EvaluationPair]:
    scenes = generate_scenes(3, (64, 80))
    return [make_evaluation_pair(s, f"scene{i // 2}__{i:03d}.exr") for i, s in enumerate(scenes)]


@pytest.fixture
def folders(made, tmp_path):
    """Pairs as SI-HDR is laid out; the truths of another scale each."""
    inputs, data = tmp_path / "clip_95", tmp_path / "reference"
    inputs.mkdir()
    data.mkdir()
    for index, pair in enumerate(made):
        write_png(inputs / f"{pair.name}.png", pair.input)
        write_hdr(data / f"{pair.name}.exr", pair.target * np.float32(10.0**index))
    return inputs, data


# --- matching -----------------------------------------------------------------------------------


def test_pairs_match_by_stem(made, folders):
    inputs, data = folders
    (data / "notes.txt").write_text("not an image")
    (inputs / ".hidden.png").write_text("not one either")
    jpeg = inputs / f"{made[0].name}.png"
    jpeg.with_suffix(".jpg").write_bytes(made[0].jpeg)
    jpeg.unlink()
    found = match_pairs(inputs, data)
    assert [(photo.name, truth.name) for photo, truth in found] == [
        ("scene0__000.jpg", "scene0__000.exr"),
        ("scene0__001.png", "scene0__001.exr"),
        ("scene1__002.png", "scene1__002.exr"),
    ]
    read = list(own_pairs(inputs, data))
    assert [(pair.name, pair.scene) for pair in read] == [
        ("scene0__000", "scene0"),
        ("scene0__001", "scene0"),
        ("scene1__002", "scene1"),
    ]
    for pair, original in zip(read, made, strict=True):
        np.testing.assert_array_equal(pair.input, original.input)


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_partner_is_named(folders, which):
    file = sorted(folders[1 - which].iterdir())[1]
    for path in sorted(folders[which].iterdir())[1:]:
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        own_pairs(*folders)
    message = str(caught.value)
    assert str(file) in message
    assert str(folders[which]) in message
    assert "and 1 more such files" in message
    assert "add the partner" in message


def test_folders_that_cannot_be_matched(folders, tmp_path):
    inputs, data = folders
    with pytest.raises(FileNotFoundError, match="no such folder"):
        match_pairs(tmp_path / "no", data)
    with pytest.raises(ValueError, match=r"expected photos \(.jpg, .jpeg, .png\), found none"):
        match_pairs(data, data)
    with pytest.raises(ValueError, match=r"expected HDR images \(.hdr, .exr\), found none"):
        match_pairs(inputs, inputs)
    # One folder above, as someone may give it who has clip_95 and clip_97.
    (tmp_path / "clip_97").mkdir()
    write_png(tmp_path / "clip_97" / "scene0__000.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"clip_97.*same stem as .*clip_95.*scene0__000"):
        match_pairs(tmp_path, data)


# --- files that are no pair ---------------------------------------------------------------------


def test_a_pair_of_two_sizes_names_both_files_and_sizes(made, folders):
    inputs, data = folders
    write_png(inputs / f"{made[1].name}.png", made[1].input[:-1])
    pairs = own_pairs(inputs, data)
    next(pairs)
    with pytest.raises(ValueError, match=r"__001.png: is 80 x 63 .*__001.exr is 80 x 64.*crop"):
        next(pairs)


def test_files_that_cannot_be_read_are_named(made, folders):
    inputs, data = folders
    photo, truth = (folder / f"{made[0].name}" for folder in folders)
    truth.with_suffix(".exr").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"scene0__000\.exr: not an OpenEXR image"):
        next(own_pairs(inputs, data))
    broken = made[0].target.copy()
    broken[3, 4, 0] = np.inf
    write_hdr(truth.with_suffix(".exr"), broken)
    with pytest.raises(ValueError, match=r"scene0__000\.exr: expected finite values, got 1"):
        next(own_pairs(inputs, data))
    photo.with_suffix(".png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"scene0__000\.png"):
        next(own_pairs(inputs, data))


def test_photos_of_16_bits_are_refused(made, folders):
    imagecodecs = pytest.importorskip("imagecodecs", reason="writes a PNG of 16 bits")
    inputs, data = folders
    deep = made[0].input.astype(np.uint16) * 257
    (inputs / f"{made[0].name}.png").write_bytes(imagecodecs.png_encode(deep))
    with pytest.raises(
        ValueError,
        match=r"scene0__000\.png: expected 8 bits a channel in sRGB, got 16 bits in sRGB",
    ):
        next(own_pairs(inputs, data))


# --- the scale of the truth ---------------------------------------------------------------------


def test_the_truth_is_brought_to_the_clip_level_whatever_its_scale(made, folders):
    for index, (pair, original) in enumerate(zip(own_pairs(*folders), made, strict=True)):
        error = pair.scale * 10.0**index  # 1: found the very clip level
        assert 1 / HALF_A_STOP < error < HALF_A_STOP
        np.testing.assert_allclose(pair.target, original.target * error, rtol=1e-6)


def test_the_gain_of_the_ldr_row_is_1(folders):
    for pair in own_pairs(*folders):
        light = srgb_to_linear(torch.from_numpy(pair.input) / 255).numpy()
        assert fit_gain(light, pair.target, pair.input) == pytest.approx(1.0, abs=1e-5)


def test_the_scale_is_exact_for_an_srgb_camera(made):
    rng = np.random.default_rng(0)
    truth = np.exp(1.5 * rng.standard_normal((90, 100, 3)) - 1)
    encoded = np.where(
        truth <= 0.0031308, 12.92 * truth, 1.055 * np.maximum(truth, 1e-9) ** (1 / 2.4) - 0.055
    )
    photo = np.rint(255 * encoded.clip(0, 1)).astype(np.uint8)
    assert (photo == 255).mean() > 0.1
    # Rounding to code values averages out over 27,000 of them.
    assert fit_truth_scale(photo, truth * 40) == pytest.approx(1 / 40, rel=1e-3)
    unclipped = np.minimum(truth, 0.9)
    photo = np.minimum(photo, int(255 * (1.055 * 0.9 ** (1 / 2.4) - 0.055) + 0.5))
    # A third of them is the one level of 0.9 now, off by up to half a code value: 0.45 % of light.
    assert fit_truth_scale(photo, unclipped) == pytest.approx(1.0, rel=5e-3)


@pytest.mark.parametrize(
    ("photo", "truth", "message"),
    [
        (0, 1.0, "neither black nor clipped, got none"),
        (255, 1.0, "neither black nor clipped, got none"),
        (128, 0.0, "neither black nor clipped, got none"),
        (3, 1.0, "at least 100 well-exposed pixels"),
    ],
)
def test_a_scale_that_cannot_be_found_names_both_files(tmp_path, photo, truth, message):
    write_png(tmp_path / "a.png", np.full((20, 20, 3), photo, np.uint8))
    write_hdr(tmp_path / "a.exr", np.full((20, 20, 3), truth, np.float32))
    with pytest.raises(ValueError, match=rf"a\.exr and .*a\.png: .*{message}"):
        next(own_pairs(tmp_path, tmp_path))


# --- results in files ---------------------------------------------------------------------------


def test_results_are_read_by_stem_from_each_kind_of_file(tmp_path):
    image = np.random.default_rng(0).random((4, 5, 3), dtype=np.float32)
    (tmp_path / "deep").mkdir()
    write_hdr(tmp_path / "deep" / "001.exr", image)
    np.save(tmp_path / "002.npy", image.astype(np.float64))
    write_hdr(tmp_path / "003.hdr", image)
    write_png(tmp_path / "001_preview.png", np.zeros((4, 5, 3), np.uint8))
    results = SavedResults(tmp_path)
    results.require(["001", "002", "003"])
    np.testing.assert_array_equal(results.read("001"), image)
    np.testing.assert_array_equal(results.read("002"), image)
    # RGBE rounds to 1/256 of a pixel's largest channel at most.
    assert np.abs(results.read("003") - image).max() <= image.max() / 256


def test_results_that_are_missing_or_double_are_named(tmp_path):
    np.save(tmp_path / "001.npy", np.ones((4, 5, 3)))
    results = SavedResults(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"002\.exr: no such file \(and 1 more\)"):
        results.require(["001", "002", "003"])
    with pytest.raises(FileNotFoundError, match=r"002\.exr: no such file; every picture"):
        results.read("002")
    write_hdr(tmp_path / "001.exr", np.ones((4, 5, 3), np.float32))
    with pytest.raises(ValueError, match=r"001\.npy: has the same stem as .*001\.exr"):
        SavedResults(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected results \(.hdr, .exr, .npy\), found none"):
        SavedResults(tmp_path / "empty")


@pytest.mark.parametrize(
    "content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"], ids=len
)
def test_arrays_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / "001.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"001\.npy: not an array that can be read"):
        SavedResults(tmp_path).read("001")


def test_arrays_of_integers_and_pickles_are_refused(tmp_path):
    np.save(tmp_path / "001.npy", np.ones((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"001\.npy: expected one floating-point array .* uint8"):
        SavedResults(tmp_path).read("001")
    np.save(tmp_path / "001.npy", np.array([{"light": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"001\.npy: not an array that can be read"):
        SavedResults(tmp_path).read("001")
