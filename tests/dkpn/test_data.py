import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from dkpn.data import (
    evaluation_pairs,
    find_images,
    load_scene,
    make_evaluation_pair,
    make_validation_pair,
    scene_name,
    split_by_scene,
    validation_pairs,
)
from dkpn.hdr_io import write_hdr
from dkpn.jpeg import jpeg_decode
from dkpn.scenes import generate_scenes

Image = pytest.importorskip("PIL.Image", reason="Pillow makes the JPEG files")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return generate_scenes(4, (24, 40))


@pytest.fixture
def folder(tmp_path) -> Path:
    pytest.importorskip("OpenEXR", reason="the codec of .exr files")
    for index, name in enumerate(("lake__crop0", "lake__crop1", "hall__crop0", "sub/street")):
        path = tmp_path / f"{name}.exr"
        path.parent.mkdir(exist_ok=True)
        write_hdr(path, generate_scenes(1, 24, seed=index)[0])
    return tmp_path


# --- files --------------------------------------------------------------------------------------


def test_find_images_is_recursive_and_sorted(tmp_path):
    for name in ("b.hdr", "a/c.EXR", "a/b.exr", "note.txt", ".hidden/d.hdr", "a/.e.hdr", "f.hdr/g"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    expected = [tmp_path / name for name in ("a/b.exr", "a/c.EXR", "b.hdr")]
    assert find_images(tmp_path) == expected


def test_find_images_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_images(tmp_path / "no")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"expected HDR images .* found none among 1 files"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("path", "scene"),
    [("a/garden__crop3.hdr", "garden"), ("garden.exr", "garden"), ("a__b__c.hdr", "a")],
)
def test_scene_name(path, scene):
    assert scene_name(path) == scene


def scene_files(count: int) -> list[Path]:
    return [Path(f"scene{i}__crop{j}.hdr") for i in range(count) for j in range(3)]


def test_split_keeps_scenes_together_and_follows_the_hash():
    files = scene_files(200)
    training, validation = split_by_scene(files, 0.1)
    assert sorted(training + validation) == sorted(files)
    assert not {scene_name(f) for f in training} & {scene_name(f) for f in validation}
    for path in files:
        digest = hashlib.sha256(scene_name(path).encode()).hexdigest()
        assert (path in validation) == (int(digest, 16) / 2**256 < 0.1)


def test_split_does_not_move_scenes_when_others_are_added():
    _, few = split_by_scene(scene_files(100), 0.2)
    _, many = split_by_scene(scene_files(200), 0.2)
    assert set(few) == set(many) & set(scene_files(100))


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_split_leaves_no_side_empty(fraction):
    training, validation = split_by_scene(scene_files(5), fraction)
    assert {len(training), len(validation)} == {3, 12}


def test_split_refuses_what_cannot_be_divided():
    with pytest.raises(ValueError, match=r"files: expected at least 2 scenes to divide, got 1 \(3"):
        split_by_scene(scene_files(1))
    with pytest.raises(ValueError, match=r"fraction: expected a number between 0 and 1, got 1\.0"):
        split_by_scene(scene_files(3), 1.0)


def test_load_images_in_order_without_negative_values(tmp_path):
    pytest.importorskip("OpenEXR", reason="the codec of .exr files")
    arrays = generate_scenes(5, 16)
    arrays[2][0, 0] = [-1.0, 2.0, 3.0]
    files = [tmp_path / f"{i}.exr" for i in range(5)]
    for path, array in zip(files, arrays, strict=True):
        write_hdr(path, array)
    loaded = [load_scene(path) for path in files]
    arrays[2][0, 0, 0] = 0
    for actual, expected in zip(loaded, arrays, strict=True):
        assert np.array_equal(actual.pixels, expected)
        assert not actual.pixels.flags.writeable


def test_load_images_refuses_infinity_by_name(tmp_path):
    pytest.importorskip("OpenEXR", reason="the codec of .exr files")
    array = generate_scenes(1, 16)[0]
    array[0, 0] = np.inf
    write_hdr(tmp_path / "sun.exr", array)
    with pytest.raises(ValueError, match=r"sun\.exr: expected finite values, got 3 of NaN or inf"):
        load_scene(tmp_path / "sun.exr")


# --- evaluation pairs ---------------------------------------------------------------------------


def test_evaluation_pair_holds_together(images):
    pair = make_evaluation_pair(images[0], "val/lake__crop1.exr")
    assert (pair.name, pair.scene) == ("lake__crop1", "lake")
    assert pair.input.dtype == np.uint8
    assert pair.target.dtype == np.float32
    assert pair.input.shape == pair.target.shape == (24, 40, 3)
    assert pair.target.flags.c_contiguous
    assert np.array_equal(jpeg_decode(pair.jpeg), pair.input)
    np.testing.assert_allclose(pair.target, images[0] * pair.camera.exposure, rtol=1e-6)
    assert 85 <= pair.camera.jpeg_quality <= 98
    above = np.mean(pair.target.max(axis=2) > 1)
    assert 0.03 - 1 / 960 <= above <= 0.15 + 1 / 960
    with Image.open(io.BytesIO(pair.jpeg)) as picture:
        assert picture.format == "JPEG"


def test_evaluation_camera_depends_on_the_path_and_seed(images):
    pair = make_evaluation_pair(images[0], "a/b.exr")
    again = make_evaluation_pair(images[0], "a/b.exr", 0)
    assert pair.camera == again.camera
    assert np.array_equal(pair.input, again.input)
    others = [
        make_evaluation_pair(images[0], "a/c.exr"),
        make_evaluation_pair(images[0], "b.exr"),
        make_evaluation_pair(images[0], "a/b.exr", seed=1),
    ]
    assert len({one.camera for one in [pair, *others]}) == 4


def test_evaluation_pair_of_a_black_image_names_it():
    with pytest.raises(ValueError, match=r"a/b\.exr: hdr: expected an image with finite light"):
        make_evaluation_pair(np.zeros((8, 8, 3), np.float32), "a/b.exr")


def test_evaluation_pairs_of_a_folder(folder):
    pairs = list(evaluation_pairs(folder))
    assert [pair.name for pair in pairs] == ["hall__crop0", "lake__crop0", "lake__crop1", "street"]
    street = load_scene(folder / "sub" / "street.exr").pixels
    assert pairs[3].camera == make_evaluation_pair(street, "sub/street.exr").camera
    some = validation_pairs(folder, [folder / "sub" / "street.exr"])
    assert [name for name, _, _ in some] == ["street"]
    assert np.array_equal(some[0][1], pairs[3].input)
    assert np.array_equal(some[0][2], pairs[3].target)


def test_validation_pairs_are_evaluation_pairs_bit_for_bit(folder):
    """Their JPEG is made in PyTorch, that of the evaluation by Pillow."""
    validation = validation_pairs(folder)
    for pair, (name, photo, truth) in zip(evaluation_pairs(folder), validation, strict=True):
        assert name == pair.name
        assert photo.dtype == np.uint8
        assert photo.flags.c_contiguous
        assert np.array_equal(photo, pair.input)
        assert np.array_equal(truth, pair.target)
    single = make_validation_pair(generate_scenes(1, (37, 50))[0], "a/b.exr")
    pair = make_evaluation_pair(generate_scenes(1, (37, 50))[0], "a/b.exr")
    assert single[0] == "b"
    assert np.array_equal(single[1], pair.input)
    assert np.array_equal(single[2], pair.target)


def test_validation_pair_of_a_black_image_names_it():
    with pytest.raises(ValueError, match=r"a/b\.exr: hdr: expected an image with finite light"):
        make_validation_pair(np.zeros((8, 8, 3), np.float32), "a/b.exr")


def test_equal_stems_are_refused(folder):
    (folder / "street.hdr").touch()
    with pytest.raises(ValueError, match=r"sub/street\.exr: has the same stem as .*street\.hdr"):
        evaluation_pairs(folder)
