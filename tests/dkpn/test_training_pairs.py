import dataclasses
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dkpn.camera import CameraConfig
from dkpn.data import find_images, load_scene
from dkpn.scenes import generate_scene, generate_scenes
from dkpn.training_pairs import DataConfig, TrainingPairs
from dkpn.views import Scene

PLAIN = DataConfig(crop_size=16, max_shrink=1.0, flip=False, white_balance=0.0, min_stops=0.0)
PLAIN_CAMERA = CameraConfig(
    curve_weights=(0.0, 0.0, 1.0), clip_below=(0.0, 0.0), jpeg_quality=(100, 100)
)
HDR_DATA = Path(os.environ.get("KPNOPS_HDR_DATA", "../shared/hdr"))


@pytest.fixture(scope="module")
def photos() -> list[Scene]:
    return [Scene(f"photo{i}", image) for i, image in enumerate(generate_scenes(4, (24, 40)))]


@pytest.fixture(scope="module")
def panorama() -> Scene:
    # Mirrored, so that its sides meet.
    half = generate_scene(9, (64, 64))
    return Scene("around", np.concatenate((half, half[:, ::-1]), axis=1), panorama=True)


def pairs_of(scenes, config=PLAIN, **options) -> TrainingPairs:
    return TrainingPairs(scenes, config, **options)


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_pair_depends_on_seed_and_index_alone(photos, panorama):
    config = DataConfig(crop_size=16)
    pairs = pairs_of([*photos, panorama], config, seed=1)
    state = torch.get_rng_state()
    together = pairs.batch(range(6))
    for index in reversed(range(6)):
        alone = pairs.batch([index])
        assert same(alone, [tensor[index : index + 1] for tensor in together])
    again = pairs_of([*photos, panorama], config, seed=1)
    assert same(together, again.batch(range(6)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(together, pairs_of([*photos, panorama], config, seed=2).batch(range(6)))
    assert not torch.equal(together[0][0], together[0][1])


def test_truth_is_an_exposed_crop_and_input_its_photo(photos):
    (photo,), (truth,) = pairs_of(photos[:1], camera=PLAIN_CAMERA).batch([0])
    assert photo.shape == truth.shape == (3, 16, 16)
    assert photo.dtype == truth.dtype == torch.float32
    assert torch.equal((photo * 255).round() / 255, photo)
    crops = np.lib.stride_tricks.sliding_window_view(photos[0].pixels, (16, 16, 3))[:, :, 0]
    ratios = truth.permute(1, 2, 0).numpy() / crops
    constant = ratios.std(axis=(2, 3, 4)) / ratios.mean(axis=(2, 3, 4)) < 1e-6
    assert constant.sum() == 1  # it is one of the crops, times one number
    above = (truth.amax(dim=0) > 1).float().mean().item()
    assert 0.02 - 1 / 256 <= above <= 0.2 + 1 / 256
    order = np.corrcoef(photo.flatten(), truth.clamp(0, 1).sqrt().flatten())[0, 1]
    assert order > 0.9


def test_panoramas_and_photos_come_in_the_share_asked_for(photos, panorama):
    # Photos of this set are grey, the panorama is not.
    grey = [Scene(s.name, s.pixels.mean(2, keepdims=True).repeat(3, 2)) for s in photos]
    config = dataclasses.replace(PLAIN, panorama_share=0.25)
    pairs = pairs_of([*grey, panorama], config)
    truths = pairs.batch(range(200))[1]
    coloured = ((truths[:, 0] - truths[:, 2]).abs().amax((1, 2)) > 1e-3).float().mean().item()
    assert coloured == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 200) ** 0.5)
    for only in (grey, [panorama]):
        assert torch.isfinite(pairs_of(only, config).batch(range(4))[1]).all()


def test_augmentation_flips_and_turns():
    ramp = np.linspace(0.1, 1.0, 16, dtype=np.float32)
    x, y = np.broadcast_to(ramp, (16, 16)), np.broadcast_to(ramp[:, None] ** 2, (16, 16))
    image = np.ascontiguousarray(np.stack([x, y, x * y], axis=2))
    expected = {
        np.ascontiguousarray(np.rot90(flipped, turns)).tobytes()
        for flipped in (image, image[:, ::-1])
        for turns in range(4)
    }
    assert len(expected) == 8
    config = dataclasses.replace(PLAIN, flip=True, rotate=True)
    pairs = pairs_of([Scene("ramp", image)], config)
    shown = set()
    for index in range(100):  # each of the eight is missed with a probability of 2e-6
        view, _ = pairs._view(index)
        shown.add(view.permute(1, 2, 0).contiguous().numpy().tobytes())
    assert shown == expected


def test_white_balance_is_bounded(photos):
    square = Scene("square", photos[0].pixels[:, :24])
    pairs = pairs_of([square], dataclasses.replace(PLAIN, crop_size=24, white_balance=0.5))
    gains = []
    for index in range(50):
        gain = pairs._view(index)[0].permute(1, 2, 0).numpy() / square.pixels
        assert np.allclose(gain, gain[0, 0], rtol=1e-6)
        gains.append(np.log2(gain[0, 0]))
    assert 0.4 < np.abs(gains).max() <= 0.5 + 1e-6


def test_views_without_light_or_range_are_drawn_again():
    image = np.full((64, 64, 3), 0.5, dtype=np.float32)
    image[:24, :24] = generate_scene(0, 24)
    flat = dataclasses.replace(PLAIN, min_stops=0.0)
    ranged = dataclasses.replace(PLAIN, min_stops=3.0)

    def stops(config: DataConfig) -> float:
        views = [pairs_of([Scene("corner", image)], config)._view(i)[0] for i in range(30)]
        return float(np.mean([torch.log2(v.max() / v.min().clamp_min(1e-6)) for v in views]))

    assert stops(ranged) > 1.5 * stops(flat)
    image[24:], image[:, 24:] = 0, 0
    truths = pairs_of([Scene("corner", image)], flat).batch(range(8))[1]
    assert (truths.amax((1, 2, 3)) >= 1).all()


@pytest.mark.parametrize(
    ("scenes", "options", "message"),
    [
        ([], {}, "scenes: expected at least one"),
        ([np.ones((16, 15, 3), np.float32)], {}, "here: expected at least crop_size = 16.*15 x 16"),
        ([np.ones((16, 16), np.float32)], {}, r"here: expected shape \(H, W, 3\)"),
        ([np.zeros((16, 16, 3), np.float32)], {}, "here: expected light in it"),
        ([np.ones((16, 16, 3), np.float32)], {"seed": -1}, "seed: expected an integer of at least"),
    ],
)
def test_unusable_scenes_are_refused_by_name(scenes, options, message):
    with pytest.raises(ValueError, match=message):
        TrainingPairs([Scene("here", pixels) for pixels in scenes], PLAIN, **options)


class Watched(TrainingPairs):
    """Pairs that tell which batches have been begun."""

    def batch(self, indices):
        self.begun.append(list(indices))
        return super().batch(indices)


def watched(photos) -> Watched:
    pairs = Watched(photos, PLAIN)
    pairs.begun = []
    return pairs


def test_batches_are_those_of_their_indices_in_order(photos):
    pairs, parts = pairs_of(photos), [range(2), range(5, 8), range(2, 3)]
    made = list(pairs.batches(iter(parts)))
    assert len(made) == 3
    assert all(same(one, pairs.batch(part)) for one, part in zip(made, parts, strict=True))
    assert list(pairs.batches([])) == []


def test_one_batch_is_made_ahead_and_no_more(photos):
    pairs, before = watched(photos), set(threading.enumerate())
    stream = pairs.batches([index] for index in range(100))
    next(stream)
    (thread,) = set(threading.enumerate()) - before
    for _ in range(500):
        if len(pairs.begun) == 2:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert pairs.begun == [[0], [1]]
    stream.close()
    assert not thread.is_alive()


def test_a_batch_that_fails_raises_where_it_is_asked_for(photos):
    stream = watched(photos).batches([[0], [-1], [1]])
    next(stream)
    with pytest.raises(IndexError, match="at least 0"):
        next(stream)


def test_negative_indices_are_refused(photos):
    with pytest.raises(IndexError, match="indices: expected at least 0, got -1"):
        pairs_of(photos).batch([-1])


@pytest.mark.parametrize(
    "arguments",
    [
        {"crop_size": 7},
        {"panorama_share": 1.1},
        {"field_of_view": (90.0, 60.0)},
        {"pitch": (-91.0, 0.0)},
        {"roll": -1.0},
        {"max_shrink": 0.9},
        {"white_balance": -0.1},
        {"min_stops": 21.0},
    ],
)
def test_config_refuses_numbers_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        DataConfig(**arguments)


@pytest.mark.skipif(not HDR_DATA.is_dir(), reason=f"no HDR pictures in {HDR_DATA}")
def test_real_pictures_make_pairs():
    pytest.importorskip("imagecodecs", reason="the codec of .hdr files")
    files = find_images(HDR_DATA / "train")[::60] + find_images(HDR_DATA / "panoramas")[::20]
    scenes = [load_scene(path) for path in files]
    assert [scene.panorama for scene in scenes] == ["panoramas" in str(file) for file in files]
    truths = TrainingPairs(scenes, DataConfig(crop_size=96)).batch(range(8))[1]
    assert torch.isfinite(truths).all()
    assert (truths >= 0).all()
    above = (truths.amax(dim=1) > 1).float().mean((1, 2))
    assert ((above >= 0.02 - 1e-3) & (above <= 0.2 + 1e-3)).all()
