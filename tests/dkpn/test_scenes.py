import numpy as np
import pytest

from dkpn.color import LUMINANCE_WEIGHTS
from dkpn.scenes import generate_scene, generate_scenes

SEEDS = range(24)  # enough that all kinds of scenes are among them


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return generate_scenes(len(SEEDS), (48, 64))


def test_scenes_are_finite_positive_float32(scenes):
    for scene in scenes:
        assert scene.shape == (48, 64, 3)
        assert scene.dtype == np.float32
        assert np.isfinite(scene).all()
        assert (scene > 0).all()


def test_scenes_have_the_range_of_real_ones(scenes):
    luminances = [scene @ np.array(LUMINANCE_WEIGHTS) for scene in scenes]
    stops = [np.log2(np.percentile(y, 99.5) / np.percentile(y, 1)) for y in luminances]
    # Photographs and panoramas are kept as high in dynamic range from some 3.5 stops on.
    assert min(stops) > 3.5
    # Light sources: something far above the average in most scenes, and suns in some.
    above_median = [y.max() / np.median(y) for y in luminances]
    assert np.median(above_median) > 30
    assert max(scene.max() for scene in scenes) > 1000


def test_a_scene_is_a_function_of_seed_and_size():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(generate_scene(5, 16), generate_scene(5, (16, 16)))
    assert not np.array_equal(generate_scene(5, 16), generate_scene(6, 16))
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_seeds_of_lists_do_not_overlap():
    first, second = generate_scenes(3, 8, seed=0), generate_scenes(3, 8, seed=1)
    assert len({scene.tobytes() for scene in first + second}) == 6
    assert np.array_equal(first[2], generate_scene(2, 8))


def test_smallest_size():
    assert generate_scene(0, 8).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("seed", "size", "message"),
    [
        (-1, 16, "seed: expected an integer of at least 0"),
        (0, (16, 7), "size: expected at least 8"),
    ],
)
def test_wrong_arguments(seed, size, message):
    with pytest.raises(ValueError, match=message):
        generate_scene(seed, size)
