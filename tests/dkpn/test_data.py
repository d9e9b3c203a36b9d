import dataclasses
import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dkpn.camera import CameraConfig, inverse_response_curve, jpeg_decode
from dkpn.data import (
    DataConfig,
    TrainingPairs,
    evaluation_pairs,
    find_images,
    load_images,
    make_evaluation_pair,
    scene_name,
    shrink_area,
    split_by_scene,
    validation_pairs,
)
from dkpn.hdr_io import write_hdr
from dkpn.scenes import generate_scenes

Image = pytest.importorskip("PIL.Image", reason="Pillow makes the JPEG files")

PLAIN = DataConfig(crop_size=16, max_shrink=1.0, flip=False, rotate=False, white_balance=0.0)
SRGB_CAMERA = CameraConfig(
    curve_weights=(0.0, 0.0, 1.0), clip_below=(0.0, 0.0), jpeg_quality=(100, 100)
)
HDR_DATA = Path(os.environ.get("KPNOPS_HDR_DATA", "../shared/hdr"))


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
    loaded = load_images(files, threads=3)
    arrays[2][0, 0, 0] = 0
    for actual, expected in zip(loaded, arrays, strict=True):
        assert np.array_equal(actual, expected)
        assert not actual.flags.writeable


def test_load_images_refuses_infinity_by_name(tmp_path):
    pytest.importorskip("OpenEXR", reason="the codec of .exr files")
    array = generate_scenes(1, 16)[0]
    array[0, 0] = np.inf
    write_hdr(tmp_path / "sun.exr", array)
    with pytest.raises(ValueError, match=r"sun\.exr: expected finite values, got 3 of NaN or inf"):
        load_images([tmp_path / "sun.exr"])


# --- training pairs -----------------------------------------------------------------------------


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_pair_depends_on_seed_and_index_alone(images):
    config = DataConfig(crop_size=16)
    pairs = TrainingPairs(images, config, seed=1)
    state = torch.get_rng_state()
    forward = [pairs[index] for index in range(10)]
    backward = [pairs[index] for index in reversed(range(10))][::-1]
    copied = pickle.loads(pickle.dumps(pairs))
    for index in range(10):
        assert equal(forward[index], backward[index])
        assert equal(forward[index], copied[index])
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(pairs[0], pairs[4])
    assert not equal(pairs[0], TrainingPairs(images, config, seed=2)[0])


def test_pairs_come_out_of_a_loader(images):
    pairs = TrainingPairs(images, DataConfig(crop_size=16), length=6)
    batches = list(DataLoader(pairs, batch_size=4))
    assert [batch["input"].shape[0] for batch in batches] == [4, 2]
    assert torch.equal(batches[1]["target"][1], pairs[5]["target"])
    assert len(list(pairs)) == 6


def test_every_image_is_shown_once_before_any_is_shown_again():
    # Grey levels cannot tell images apart after the exposure; hues can.
    images = []
    for hue in range(6):
        image = generate_scenes(1, 16, seed=hue)[0]
        image[..., 2] = (hue + 1) * image[..., 0]
        images.append(image)
    pairs = TrainingPairs(images, PLAIN)
    orders = []
    for epoch in range(3):
        targets = [pairs[epoch * 6 + position]["target"] for position in range(6)]
        orders.append([round((t[2].mean() / t[0].mean()).item()) - 1 for t in targets])
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_target_is_an_exposed_crop_and_input_its_photo(images):
    pair = TrainingPairs(images[:1], PLAIN, camera=SRGB_CAMERA)[0]
    photo, target = pair["input"], pair["target"]
    assert photo.shape == target.shape == (3, 16, 16)
    assert photo.dtype == target.dtype == torch.float32
    assert torch.equal((photo * 255).round() / 255, photo)
    crops = np.lib.stride_tricks.sliding_window_view(images[0], (16, 16, 3))[:, :, 0]
    ratios = target.permute(1, 2, 0).numpy() / crops
    constant = ratios.std(axis=(2, 3, 4)) / ratios.mean(axis=(2, 3, 4)) < 1e-6
    assert constant.sum() == 1  # it is one of the crops, times one number
    above = (target.amax(dim=0) > 1).float().mean().item()
    assert 0.02 - 1 / 256 <= above <= 0.2 + 1 / 256
    # JPEG of noise-like scenes is wrong by some codes; aligned images agree all the same.
    decoded = inverse_response_curve(photo, srgb_camera())
    correlation = np.corrcoef(decoded.flatten(), target.clamp(0, 1).flatten())[0, 1]
    assert correlation > 0.9


def srgb_camera():
    camera = make_evaluation_pair(generate_scenes(1, 16)[0], "a.hdr").camera
    return dataclasses.replace(camera, curve="srgb", black_point=0.0)


def test_augmentation_flips_and_turns():
    ramp = np.linspace(0.1, 1.0, 16, dtype=np.float32)
    image = np.stack(
        [np.broadcast_to(ramp, (16, 16)), np.broadcast_to(ramp[:, None] ** 2, (16, 16))]
    )
    image = np.ascontiguousarray(np.stack([image[0], image[1], image[0] * image[1]], axis=2))
    config = dataclasses.replace(PLAIN, flip=True, rotate=True)
    views = {
        np.ascontiguousarray(np.rot90(flipped, turns)).tobytes()
        for flipped in (image, image[:, ::-1])
        for turns in range(4)
    }
    assert len(views) == 8
    pairs = TrainingPairs([image], config)
    shown = set()
    for index in range(100):  # each of the eight is missed with a probability of 2e-6
        crop = pairs._crop(image, np.random.default_rng(index))
        shown.add(np.ascontiguousarray(crop).tobytes())
    assert shown == views


def test_white_balance_is_bounded(images):
    config = dataclasses.replace(PLAIN, crop_size=24, white_balance=0.5)
    pairs = TrainingPairs(images, config)
    image = images[0][:, :24]
    gains = []
    for seed in range(50):
        crop = pairs._crop(image, np.random.default_rng(seed))
        gain = crop / image
        assert np.allclose(gain, gain[0, 0], rtol=1e-6)
        gains.append(np.log2(gain[0, 0]))
    assert np.abs(gains).max() <= 0.5 + 1e-6
    assert np.abs(gains).max() > 0.4


def test_crops_without_light_are_drawn_again():
    image = np.zeros((64, 64, 3), dtype=np.float32)
    image[:24, :24] = generate_scenes(1, 24)[0]
    pairs = TrainingPairs([image], dataclasses.replace(PLAIN, max_shrink=2.0))
    for pair in pairs[0], pairs[1], pairs[2], pairs[3]:
        assert pair["target"].max() >= 1


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images: expected at least one"),
        (
            [np.ones((16, 15, 3), np.float32)],
            {},
            r"images\[0\]: .*at least crop_size = 16, got \(16",
        ),
        ([np.ones((16, 16), np.float32)], {}, r"images\[0\]: expected shape \(H, W, 3\)"),
        ([np.zeros((16, 16, 3), np.float32)], {}, r"images\[0\]: expected light in it"),
        ([np.ones((16, 16, 3), np.float32)], {"seed": -1}, "seed: expected an integer of at least"),
    ],
)
def test_pairs_refuse_unusable_images(images, options, message):
    with pytest.raises(ValueError, match=message):
        TrainingPairs(images, PLAIN, **options)


def test_negative_indices_are_refused(images):
    with pytest.raises(IndexError, match="index: expected at least 0, got -1"):
        TrainingPairs(images, PLAIN)[-1]


@pytest.mark.parametrize(
    "arguments", [{"crop_size": 7}, {"max_shrink": 0.9}, {"white_balance": -0.1}]
)
def test_config_refuses_numbers_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        DataConfig(**arguments)


# --- shrinking ----------------------------------------------------------------------------------


def test_shrinking_by_whole_numbers_is_the_mean_of_boxes():
    image = np.random.default_rng(0).random((12, 20, 3), dtype=np.float32)
    expected = image.reshape(4, 3, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink_area(image, (4, 5)), expected, rtol=1e-5)  # float32 sums
    assert np.array_equal(shrink_area(image, (12, 20)), image)


@pytest.mark.parametrize("size", [(7, 11), (12, 1), (1, 19), (11, 20)])
def test_shrinking_by_fractions_averages_the_area_covered(size):
    image = np.random.default_rng(0).random((12, 20, 3), dtype=np.float32)
    # Each pixel drawn as many times as the new size has pixels makes the ratio a whole number.
    fine = image.repeat(size[0], axis=0).repeat(size[1], axis=1).astype(np.float64)
    expected = fine.reshape(size[0], 12, size[1], 20, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink_area(image, size), expected, rtol=1e-5)  # float32 sums


@pytest.mark.parametrize("size", [(13, 5), (5, 21), (0, 5)])
def test_shrinking_does_not_enlarge(size):
    with pytest.raises(ValueError, match="size: expected 1 to 12 and 1 to 20"):
        shrink_area(np.ones((12, 20, 3), np.float32), size)


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
    street = load_images([folder / "sub" / "street.exr"])[0]
    assert pairs[3].camera == make_evaluation_pair(street, "sub/street.exr").camera
    some = validation_pairs(folder, [folder / "sub" / "street.exr"])
    assert [name for name, _, _ in some] == ["street"]
    assert np.array_equal(some[0][1], pairs[3].input)
    assert np.array_equal(some[0][2], pairs[3].target)


def test_equal_stems_are_refused(folder):
    (folder / "street.hdr").touch()
    with pytest.raises(ValueError, match=r"sub/street\.exr: has the same stem as .*street\.hdr"):
        evaluation_pairs(folder)


@pytest.mark.skipif(not HDR_DATA.is_dir(), reason=f"no HDR pictures in {HDR_DATA}")
def test_real_pictures_make_pairs():
    pytest.importorskip("imagecodecs", reason="the codec of .hdr files")
    files = find_images(HDR_DATA / "train")[::40]
    pairs = TrainingPairs(load_images(files), DataConfig(crop_size=128))
    for pair in pairs:
        assert torch.isfinite(pair["target"]).all()
        assert (pair["target"] >= 0).all()
        above = (pair["target"].amax(dim=0) > 1).float().mean().item()
        assert 0.02 - 1e-3 <= above <= 0.2 + 1e-3
