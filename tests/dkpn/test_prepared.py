import builtins
import json
import subprocess
import sys

import numpy as np
import pytest

from dkpn.data import find_images, load_scene, split_by_scene, validation_pairs
from dkpn.prepared import (
    FORMAT,
    MANIFEST,
    VERSION,
    is_prepared,
    prepared_files,
    read_manifest,
    read_prepared,
    read_scene,
    round_mantissa,
    write_scene,
)
from dkpn.scenes import generate_scenes
from dkpn.views import Scene

CODECS = ("PIL", "imagecodecs", "OpenEXR")


def halves(seed: int = 0, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    return generate_scenes(1, size, seed=seed)[0].astype(np.float16)


def every_half() -> np.ndarray:
    """All finite half floats of at least 0, ascending."""
    return np.arange(0x7C00, dtype=np.uint16).view(np.float16)


@pytest.fixture
def prepared(tmp_path):
    """A set of three scenes as dkpn prepare writes it, made without any codec."""
    folder = tmp_path / "set"
    folder.mkdir()
    names = ("hall__crop0", "hall__crop1", "lake", "street")
    for index, name in enumerate(names):
        scene = Scene(name.split("__")[0], halves(index), panorama=name == "lake")
        write_scene(folder / f"{name}.npz", scene, f"sub/{name}.exr")
    pictures = [{"file": f"{name}.npz"} for name in names]
    manifest = {"format": FORMAT, "version": VERSION, "pictures": pictures}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def edit_manifest(folder, **changes):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- one picture --------------------------------------------------------------------------------


def test_a_picture_comes_back_bit_for_bit(tmp_path):
    pixels = np.resize(every_half(), (124, 256, 3))
    scene = Scene("ramp", pixels, panorama=True)
    size = write_scene(tmp_path / "a.npz", scene, "sub/ä b.exr")
    assert size == (tmp_path / "a.npz").stat().st_size
    again, source = read_scene(tmp_path / "a.npz")
    assert (again.name, again.panorama, source) == ("ramp", True, "sub/ä b.exr")
    assert again.pixels.dtype == np.float16
    assert again.pixels.shape == pixels.shape
    assert again.pixels.tobytes() == pixels.tobytes()
    assert again.pixels.flags.c_contiguous
    assert not again.pixels.flags.writeable


def test_numpy_alone_reads_a_picture_as_documented(tmp_path):
    pixels = halves()
    write_scene(tmp_path / "a.npz", Scene("a", pixels), "a.exr")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        high, low = file["high"], file["low"]
        values = (high * np.uint16(256) + low).view(np.float16)
    assert high.dtype == low.dtype == np.uint8
    assert high.shape == low.shape == (3, 24, 40)
    assert np.array_equal(values.transpose(1, 2, 0), pixels)


def test_equal_pictures_give_equal_files(tmp_path):
    for name in ("a", "b"):
        write_scene(tmp_path / name, Scene("x", halves()), "x.exr")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_planes_of_bytes_are_smaller_than_half_floats(tmp_path):
    pixels = generate_scenes(1, 256)[0].astype(np.float16)
    np.savez_compressed(tmp_path / "plain.npz", pixels)
    size = write_scene(tmp_path / "planes.npz", Scene("x", pixels), "x.exr")
    assert size < 0.9 * (tmp_path / "plain.npz").stat().st_size


def test_damaged_pictures_are_named(tmp_path):
    path = tmp_path / "a.npz"
    write_scene(path, Scene("a", halves(size=(64, 64))), "a.exr")
    whole = path.read_bytes()
    middle = len(whole) // 3
    for damaged in (
        b"",
        whole[:30],
        whole[:-1],
        whole[: len(whole) // 2],
        b"no archive at all",
        whole[:middle] + bytes(40) + whole[middle + 40 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.npz: not a picture of a prepared set, or dam"):
            read_scene(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.npz: no such file; copy the set again"):
        read_scene(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "not a picture of a prepared set"),
        ({"low": np.zeros((3, 4, 5), np.uint8)}, r"shape \(3, H, W\) twice"),
        ({"high": np.zeros((3, 4, 4), np.int8)}, r"shape \(3, H, W\) twice"),
        ({"high": np.full((3, 4, 4), 0x7C, np.uint8)}, "expected finite values of at least 0"),
        ({"high": np.full((3, 4, 4), 0x80, np.uint8)}, "expected finite values of at least 0"),
        (
            {"high": np.zeros((3, 0, 4), np.uint8), "low": np.zeros((3, 0, 4), np.uint8)},
            "expected finite values",
        ),
    ],
)
def test_other_archives_are_refused(tmp_path, arrays, message):
    plane = np.zeros((3, 4, 4), np.uint8)
    rest = {"high": plane, "low": plane, "scene": "a", "panorama": False, "source": "a"}
    np.savez(tmp_path / "a.npz", **(rest | arrays if arrays else {"pixels": plane}))
    with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
        read_scene(tmp_path / "a.npz")


@pytest.mark.parametrize("bits", [1, 6, 9, 10])
def test_rounding_the_mantissa_errs_by_half_a_step_at_most(bits):
    values = every_half()
    rounded = round_mantissa(values, bits)
    assert np.isfinite(rounded).all()
    assert (np.diff(rounded.astype(np.float32)) >= 0).all()
    exact, result = values.astype(np.float64), rounded.astype(np.float64)
    # Below 2^-14, the smallest normal value, steps are as large as just above it.
    bound = 2.0 ** -(bits + 1) * np.maximum(exact, 2.0**-14)
    below_the_largest = exact <= (2 - 2.0**-bits) * 2.0**15
    assert (np.abs(result - exact) <= bound)[below_the_largest].all()
    assert (result[~below_the_largest] == (2 - 2.0**-bits) * 2.0**15).all()
    assert len(np.unique(rounded)) == 31 * 2**bits
    if bits == 10:
        assert np.array_equal(rounded, values)


# --- a set --------------------------------------------------------------------------------------


def test_a_set_reads_as_scenes(prepared):
    assert is_prepared(prepared)
    scenes = read_prepared(prepared)
    assert [scene.name for scene in scenes] == ["hall", "hall", "lake", "street"]
    assert [scene.panorama for scene in scenes] == [False, False, True, False]
    for index, scene in enumerate(scenes):
        assert np.array_equal(scene.pixels, halves(index))


def test_a_set_stands_wherever_a_folder_of_images_does(prepared):
    files = find_images(prepared)
    assert files == prepared_files(prepared)
    for path, expected in zip(files, read_prepared(prepared), strict=True):
        scene = load_scene(path)
        assert (scene.name, scene.panorama) == (expected.name, expected.panorama)
        assert np.array_equal(scene.pixels, expected.pixels)
    training, held_out = split_by_scene(files)
    assert {path.name for path in training} & {path.name for path in held_out} == set()
    assert len({path.name.split("__")[0].split(".")[0] for path in training + held_out}) == 3


def test_missing_and_foreign_sets_say_so(prepared, tmp_path):
    assert not is_prepared(tmp_path)
    assert not is_prepared(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no such file; make a set with"):
        read_prepared(tmp_path)
    for text, message in (
        ("{", "damaged"),
        ('"text"', "not the manifest of a set"),
        ('{"name": "an app"}', "not the manifest of a set"),
    ):
        (tmp_path / MANIFEST).write_text(text)
        assert not is_prepared(tmp_path)
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path)
    edit_manifest(prepared, pictures=[{}])
    with pytest.raises(ValueError, match="no list of pictures"):
        read_manifest(prepared)
    edit_manifest(prepared, version=VERSION + 1)
    assert is_prepared(prepared)
    with pytest.raises(ValueError, match=f"expected version {VERSION}, got {VERSION + 1}"):
        find_images(prepared)


def test_a_missing_picture_is_an_error(prepared):
    (prepared / "street.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"street\.npz"):
        read_prepared(prepared)


# --- without the packages that read images --------------------------------------------------------


def test_training_from_a_set_imports_no_codec(prepared):
    """In a process of its own, in which these packages cannot be imported."""
    code = f"""
import sys
for name in {CODECS!r}:
    sys.modules[name] = None
from pathlib import Path
import dkpn.train, dkpn.cli, dkpn.commands.prepare
from dkpn.data import find_images, load_scene, validation_pairs
from dkpn.prepared import read_prepared
from dkpn.training_pairs import DataConfig, TrainingPairs
folder = Path({str(prepared)!r})
assert len(read_prepared(folder)) == 4
pairs = TrainingPairs([load_scene(path) for path in find_images(folder)], DataConfig(crop_size=16))
photo, truth = pairs.batch(range(2))
assert len(validation_pairs(folder)) == 4
print("done", *(name for name in {CODECS!r} if sys.modules.get(name)))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["done"]


def test_validation_pairs_need_no_pillow(prepared, monkeypatch):
    true_import = builtins.__import__

    def refuse(name, *rest):
        if name.split(".")[0] in CODECS:
            raise ModuleNotFoundError(name)
        return true_import(name, *rest)

    for name in list(sys.modules):
        if name.split(".")[0] in CODECS:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    pairs = validation_pairs(prepared)
    assert [name for name, _, _ in pairs] == ["hall__crop0", "hall__crop1", "lake", "street"]
    for _, photo, truth in pairs:
        assert photo.dtype == np.uint8
        assert truth.dtype == np.float32
        assert photo.shape == truth.shape == (24, 40, 3)
