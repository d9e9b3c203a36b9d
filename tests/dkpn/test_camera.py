import dataclasses
import json

import numpy as np
import pytest
import torch

from dkpn.camera import (
    CURVE_FAMILIES,
    EVALUATION_CAMERA,
    Camera,
    CameraConfig,
    develop,
    expose,
    inverse_response_curve,
    response_curve,
    sample_camera,
    to_code_values,
)
from dkpn.color import linear_to_srgb

BASE = Camera(
    exposure=0.5,
    black_point=0.001,
    curve="sigmoid",
    curve_power=0.9,
    curve_scale=0.6,
    shot_noise=1e-4,
    read_noise=1e-3,
    jpeg_quality=90,
    seed=7,
)
CURVES = [
    BASE,
    dataclasses.replace(BASE, curve_power=0.6, curve_scale=0.2),
    dataclasses.replace(BASE, curve_power=1.2, curve_scale=1.0),
    dataclasses.replace(BASE, curve="gamma", curve_power=1.8),
    dataclasses.replace(BASE, curve="gamma", curve_power=2.6, black_point=0.0),
    dataclasses.replace(BASE, curve="srgb"),
]

PINNED = Camera(
    exposure=0.003703703703703704,
    black_point=0.001953125,
    curve="sigmoid",
    curve_power=0.6868588679373602,
    curve_scale=0.6890011852968663,
    shot_noise=0.0001634073366424979,
    read_noise=0.0008893995544977903,
    jpeg_quality=92,
    seed=8422383638670039,
)


def scene(seed: int = 0, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.exp(2.0 * rng.standard_normal((*shape, 3))).astype(np.float32)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


# --- the curve ----------------------------------------------------------------------------------


@pytest.mark.parametrize("camera", CURVES)
def test_curve_is_undone_by_its_inverse(camera):
    linear = torch.linspace(camera.black_point, 1, 2001, dtype=torch.float64)
    encoded = response_curve(linear, camera)
    assert encoded[0] == 0
    assert encoded[-1].item() == pytest.approx(1, abs=torch.finfo(torch.float64).eps)
    # At 0, sRGB's two published constants meet to 1e-8 only.
    torch.testing.assert_close(
        inverse_response_curve(encoded, camera), linear, rtol=1e-7, atol=1e-8
    )
    codes = torch.linspace(0, 1, 256, dtype=torch.float64)
    torch.testing.assert_close(
        response_curve(inverse_response_curve(codes, camera), camera), codes, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("camera", CURVES)
def test_curve_is_strictly_increasing_and_clips_at_both_ends(camera):
    linear = torch.linspace(camera.black_point, 1, 2001, dtype=torch.float64)
    assert (response_curve(linear, camera).diff() > 0).all()
    # The formulas give 1 up to rounding, which a power of up to 1 / 0.6 then doubles.
    eps = 4 * torch.finfo(torch.float64).eps
    outside = torch.tensor([-1.0, 0.0, camera.black_point / 2, 1.5, 1e6], dtype=torch.float64)
    assert response_curve(outside, camera).tolist() == pytest.approx([0, 0, 0, 1, 1], abs=eps)
    ends = inverse_response_curve(torch.tensor([-1.0, 2.0], dtype=torch.float64), camera)
    assert ends.tolist() == pytest.approx([camera.black_point, 1.0], abs=eps)


def test_curves_are_the_published_ones():
    linear = torch.tensor([0.18, 0.5], dtype=torch.float64)
    plain = dataclasses.replace(BASE, black_point=0.0)
    powers = [0.18**0.9, 0.5**0.9]
    sigmoid = [1.6 * power / (power + 0.6) for power in powers]
    assert response_curve(linear, plain).tolist() == pytest.approx(sigmoid, rel=1e-12)
    gamma = dataclasses.replace(plain, curve="gamma", curve_power=2.2)
    assert response_curve(linear, gamma).tolist() == pytest.approx(
        [0.18 ** (1 / 2.2), 0.5 ** (1 / 2.2)], rel=1e-12
    )
    srgb = dataclasses.replace(plain, curve="srgb")
    assert torch.equal(response_curve(linear, srgb), linear_to_srgb(linear))


# --- the draw -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CameraConfig(), EVALUATION_CAMERA])
@pytest.mark.parametrize("seed", range(20))
def test_exposure_clips_the_fractions_asked_for(config, seed):
    hdr = scene(seed)
    camera = sample_camera(hdr, config, np.random.default_rng(seed))
    largest = hdr.max(axis=2).astype(np.float64) * camera.exposure
    one_pixel = 1 / largest.size
    above = np.mean(largest > 1 + 1e-9)  # the exposed clip level itself is 1 up to rounding
    assert config.clip_above[0] - one_pixel <= above <= config.clip_above[1] + one_pixel
    assert np.mean(largest <= camera.black_point) <= config.clip_below[1] + one_pixel
    assert config.jpeg_quality[0] <= camera.jpeg_quality <= config.jpeg_quality[1]
    assert config.shot_noise[0] <= camera.shot_noise <= config.shot_noise[1]
    assert config.read_noise[0] <= camera.read_noise <= config.read_noise[1]


def test_black_point_reaches_the_fraction_where_the_scene_is_dark_enough():
    hdr = np.exp(5 * np.random.default_rng(0).standard_normal((48, 64, 3)))
    config = CameraConfig(clip_below=(0.04, 0.05))
    camera = sample_camera(hdr, config, np.random.default_rng(0))
    black = np.mean(hdr.max(axis=2) * camera.exposure <= camera.black_point)
    assert 0.04 <= black <= 0.05 + 1 / (48 * 64)


def test_exposure_does_not_depend_on_the_unit():
    first = sample_camera(scene(), CameraConfig(), np.random.default_rng(3))
    second = sample_camera(scene() * 1024, CameraConfig(), np.random.default_rng(3))
    assert second == dataclasses.replace(first, exposure=first.exposure / 1024)


def test_the_generator_alone_decides():
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
    cameras = [sample_camera(scene(), CameraConfig(), np.random.default_rng(5)) for _ in range(2)]
    assert cameras[0] == cameras[1]
    assert cameras[0] != sample_camera(scene(), CameraConfig(), np.random.default_rng(6))
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_draw_is_the_same_in_every_version():
    # Published numbers depend on these cameras: a change here changes every table.
    hdr = np.arange(1, 301, dtype=np.float64).reshape(10, 10, 3)
    camera = sample_camera(hdr, EVALUATION_CAMERA, np.random.default_rng(0))
    assert camera == PINNED


@pytest.mark.parametrize("family", CURVE_FAMILIES)
def test_weights_choose_the_families(family):
    weights = tuple(float(one == family) for one in CURVE_FAMILIES)
    config = CameraConfig(curve_weights=weights)
    for seed in range(10):
        assert sample_camera(scene(), config, np.random.default_rng(seed)).curve == family


def test_all_families_and_their_spread_are_drawn():
    cameras = [sample_camera(scene(), CameraConfig(), np.random.default_rng(s)) for s in range(300)]
    counts = [sum(camera.curve == family for camera in cameras) for family in CURVE_FAMILIES]
    # 300 draws with probability 1/3: standard deviation 8.2; five of them.
    assert all(abs(count - 100) < 41 for count in counts)
    sigmoids = np.array([c.curve_power for c in cameras if c.curve == "sigmoid"])
    assert abs(sigmoids.mean() - 0.9) < 5 * 0.1 / np.sqrt(len(sigmoids))
    gammas = [c.curve_power for c in cameras if c.curve == "gamma"]
    assert min(gammas) >= 1.8
    assert max(gammas) <= 2.6


def test_scene_with_a_single_lit_pixel_is_exposed_for_it():
    hdr = np.zeros((8, 8, 3), dtype=np.float32)
    hdr[3, 3] = 5.0
    camera = sample_camera(hdr, CameraConfig(), np.random.default_rng(0))
    assert camera.exposure == 1 / 5
    assert camera.black_point == 0


@pytest.mark.parametrize(
    ("hdr", "message"),
    [
        (np.zeros((8, 8, 3)), "hdr: expected an image with finite light"),
        (np.full((8, 8, 3), np.inf), "hdr: expected an image with finite light"),
        (np.full((8, 8, 3), np.nan), "hdr: expected an image with finite light"),
        (np.ones((8, 8)), r"hdr: expected shape \(H, W, 3\), got \(8, 8\)"),
        (np.ones((0, 8, 3)), r"hdr: expected shape \(H, W, 3\), got \(0, 8, 3\)"),
    ],
)
def test_scenes_that_cannot_be_exposed(hdr, message):
    with pytest.raises(ValueError, match=message):
        sample_camera(hdr, CameraConfig(), np.random.default_rng(0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"clip_above": (0.2, 0.1)},
        {"clip_above": (0.2, 1.5)},
        {"clip_below": (-0.1, 0.1)},
        {"shot_noise": (0.0, 0.1)},
        {"read_noise": (0.1, float("nan"))},
        {"jpeg_quality": (0, 100)},
        {"jpeg_quality": (50,)},
        {"curve_weights": (0.0, 0.0, 0.0)},
        {"curve_weights": (1.0, 1.0)},
    ],
)
def test_config_refuses_empty_ranges(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        CameraConfig(**arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exposure", 0.0),
        ("exposure", float("nan")),
        ("black_point", 1.0),
        ("curve", "linear"),
        ("curve_power", 0.0),
        ("shot_noise", -1e-3),
        ("jpeg_quality", 101),
        ("seed", -1),
    ],
)
def test_camera_refuses_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        dataclasses.replace(BASE, **{name: value})


def test_camera_is_plain_numbers():
    camera = sample_camera(scene(), CameraConfig(), np.random.default_rng(0))
    assert Camera(**json.loads(json.dumps(dataclasses.asdict(camera)))) == camera


# --- developing ---------------------------------------------------------------------------------


def test_develop_gives_8_bit_codes_of_the_formula():
    hdr = as_tensor(scene()).double()
    noise = torch.randn(hdr.shape, generator=torch.Generator().manual_seed(0), dtype=hdr.dtype)
    light = 0.5 * hdr
    noisy = light + noise * (1e-4 * light + 1e-3**2).sqrt()
    power = ((noisy - 0.001) / 0.999).clamp(0, 1) ** 0.9
    expected = torch.round(255 * (1.6 * power / (power + 0.6)))
    actual = develop(hdr, BASE, noise) * 255
    assert torch.equal(actual.round(), expected)
    assert (actual - expected).abs().max() < 1e-12 * 255
    assert torch.equal(expose(hdr, BASE), light)


def test_noise_depends_on_the_seed_alone():
    hdr = as_tensor(scene())
    state = torch.get_rng_state()
    first, second = develop(hdr, BASE), develop(hdr.clone(), BASE)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, develop(hdr, dataclasses.replace(BASE, seed=8)))


def test_noise_has_the_variance_asked_for():
    level = 0.5
    camera = dataclasses.replace(
        BASE, exposure=1.0, black_point=0.0, curve="gamma", curve_power=1.0, shot_noise=1e-3
    )
    developed = develop(torch.full((3, 256, 256), level, dtype=torch.float64), camera)
    rounding = 1 / 12 / 255**2
    expected = 1e-3 * level + 1e-3**2 + rounding
    # A variance estimated from n normal numbers has a relative deviation of sqrt(2 / n).
    five_sigma = 5 * np.sqrt(2 / developed.numel())
    assert developed.var().item() == pytest.approx(expected, rel=five_sigma)
    assert developed.mean().item() == pytest.approx(
        level, abs=5 * np.sqrt(expected / developed.numel())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_develop_keeps_the_dtype_and_the_argument(dtype):
    hdr = as_tensor(scene()).to(dtype)
    before = hdr.clone()
    developed = develop(hdr[None, None], BASE)
    assert developed.dtype == dtype
    assert developed.shape == (1, 1, *hdr.shape)
    assert developed.min() >= 0
    assert developed.max() == 1
    assert torch.equal(hdr, before)


def test_develop_of_suns_is_finite():
    developed = develop(torch.full((3, 4, 4), 1e30), BASE)
    assert torch.equal(developed, torch.ones(3, 4, 4))


@pytest.mark.parametrize(
    ("hdr", "noise", "error", "message"),
    [
        (torch.ones(4, 4), None, ValueError, "hdr: expected shape"),
        (torch.ones(3, 4, 4, dtype=torch.uint8), None, TypeError, r"got torch\.uint8"),
        (np.ones((3, 4, 4)), None, TypeError, "got ndarray"),
        (torch.ones(3, 4, 4), torch.ones(4, 4), ValueError, "noise: expected the shape"),
    ],
)
def test_develop_refuses_what_does_not_match(hdr, noise, error, message):
    with pytest.raises(error, match=message):
        develop(hdr, BASE, noise)


@pytest.mark.gpu
@pytest.mark.parametrize("camera", CURVES)
def test_develop_on_the_gpu_gives_the_same_codes(camera):
    hdr = as_tensor(scene())
    noise = torch.randn(hdr.shape, generator=torch.Generator().manual_seed(0))
    expected = develop(hdr, camera, noise)
    actual = develop(hdr.cuda(), camera, noise.cuda()).cpu()
    # Powers differ in the last place, which moves a value across a rounding edge now and then.
    assert ((actual - expected) * 255).abs().max() < 1.5
    assert (actual != expected).float().mean() < 1e-2
    assert torch.equal(develop(hdr.cuda(), camera), develop(hdr.cuda(), camera))


def test_code_values_are_what_develop_gave():
    developed = develop(as_tensor(scene()), BASE)
    codes = to_code_values(developed)
    assert codes.dtype == np.uint8
    assert codes.shape == (48, 64, 3)
    assert torch.equal(as_tensor(codes).float() / 255, developed)
