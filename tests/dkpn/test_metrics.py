import numpy as np
import pytest
import torch

from dkpn.color import WHITE_NITS, pq_decode, pq_encode, pu21_encode
from dkpn.metrics import (
    clipped_pixels,
    crf_correct,
    fit_gain,
    mu_law_psnr,
    pu21_psnr,
    pu21_ssim,
)
from dkpn.scenes import generate_scene

RGB_TO_XYZ = np.array(  # IEC 61966-2-1, to the four digits that it prints
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    scene = generate_scene(2, (40, 56)).astype(np.float64)
    return scene / np.quantile(scene.max(axis=2), 0.9)


def nits(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.clip(image * WHITE_NITS, 0.005, 4000.0))


# --- PSNR ---------------------------------------------------------------------------------------


def test_pu21_psnr_is_the_formula(truth):
    result = truth * 1.3
    error = (pu21_encode(nits(result)) - pu21_encode(nits(truth))).square().mean().item()
    assert pu21_psnr(result, truth) == pytest.approx(10 * np.log10(256**2 / error), rel=1e-12)


def test_pu21_psnr_of_a_known_difference():
    # 100 cd/m² against black, which the display shows as 0.005 cd/m².
    bright = np.full((2, 2, 3), 100 / WHITE_NITS)
    ends = pu21_encode(torch.tensor([0.005, 100.0], dtype=torch.float64))
    expected = 20 * np.log10(256 / ends.diff().item())
    assert pu21_psnr(bright, np.zeros((2, 2, 3))) == pytest.approx(expected, rel=1e-9)


def test_psnr_of_the_truth_is_capped(truth):
    for measure in (pu21_psnr, mu_law_psnr):
        assert measure(truth, truth) == 100.0
        assert measure(truth.astype(np.float32), truth) == 100.0
        assert measure(truth * 1.001, truth) < 100.0


def test_light_outside_the_display_range_counts_as_its_bounds():
    truth = np.full((2, 2, 3), 1e6)
    assert pu21_psnr(np.full((2, 2, 3), 4000 / WHITE_NITS), truth) == 100.0
    truth = np.zeros((2, 2, 3))
    assert pu21_psnr(np.full((2, 2, 3), -7.0), truth) == 100.0
    assert pu21_psnr(np.full((2, 2, 3), 0.005 / WHITE_NITS), truth) == 100.0


@pytest.mark.parametrize("measure", [pu21_psnr, mu_law_psnr])
def test_mask_chooses_the_pixels(truth, measure):
    mask = np.zeros(truth.shape[:2], dtype=bool)
    mask[:10] = True
    result = truth.copy()
    result[10:] *= 2
    assert measure(result, truth, mask) == 100.0
    assert measure(result, truth, ~mask) < measure(result, truth)
    # A crop alone has another peak in the µ-law's measure.
    if measure is pu21_psnr:
        assert measure(result, truth, ~mask) == pytest.approx(measure(result[10:], truth[10:]))
    assert np.isnan(measure(result, truth, np.zeros_like(mask)))


def test_mu_law_psnr_is_the_formula(truth):
    result = truth * 0.8
    clamped = [nits(image).numpy() for image in (result, truth)]
    encoded = [np.log1p(5000 * image / clamped[1].max()) / np.log(5001) for image in clamped]
    expected = -10 * np.log10(np.mean((encoded[0] - encoded[1]) ** 2))
    assert mu_law_psnr(result, truth) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("measure", [pu21_psnr, pu21_ssim, mu_law_psnr, crf_correct])
def test_nan_and_other_shapes_are_errors(truth, measure):
    bad = truth.copy()
    bad[3, 4, 1] = np.nan
    with pytest.raises(ValueError, match="result: expected numbers, got 1 NaN values"):
        measure(bad, truth)
    with pytest.raises(ValueError, match="truth: expected numbers, got 1 NaN values"):
        measure(truth, bad)
    with pytest.raises(ValueError, match="result: expected the truth's shape"):
        measure(truth[1:], truth)
    with pytest.raises(ValueError, match=r"result: expected shape \(H, W, 3\)"):
        measure(truth[..., 0], truth)


def test_masks_of_other_kinds_are_errors(truth):
    with pytest.raises(ValueError, match=r"mask: expected \(40, 56\) bool, got \(40, 56\) float64"):
        pu21_psnr(truth, truth, np.ones(truth.shape[:2]))


# --- structural similarity ----------------------------------------------------------------------

SSIM_FLOORS = ((0.01 * 256) ** 2, (0.03 * 256) ** 2)


def encoded_luminance(image: np.ndarray) -> np.ndarray:
    values = (nits(image).numpy() * [0.2126, 0.7152, 0.0722]).sum(axis=2)
    return pu21_encode(torch.from_numpy(values)).numpy()


def direct_ssim(result: np.ndarray, truth: np.ndarray) -> float:
    """Window by window, with the variances about each window's own mean."""
    axis = np.arange(-5, 6)
    weights = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    padded = [np.pad(encoded_luminance(image), 5, mode="edge") for image in (result, truth)]
    values = np.empty(truth.shape[:2])
    for y, x in np.ndindex(*values.shape):
        first, second = (image[y : y + 11, x : x + 11] for image in padded)
        means = (weights * first).sum(), (weights * second).sum()
        deviations = first - means[0], second - means[1]
        variance = sum((weights * deviation**2).sum() for deviation in deviations)
        covariance = (weights * deviations[0] * deviations[1]).sum()
        a, b = SSIM_FLOORS
        brightness = (2 * means[0] * means[1] + a) / (means[0] ** 2 + means[1] ** 2 + a)
        values[y, x] = brightness * (2 * covariance + b) / (variance + b)
    return values.mean()


def test_ssim_is_the_formula(truth):
    rng = np.random.default_rng(0)
    small = truth[:19, :23]
    result = 1.2 * small**1.1 * np.exp(0.5 * rng.standard_normal(small.shape))
    expected = direct_ssim(result, small)
    assert 0.2 < expected < 0.95
    # The shortcut for the variances loses six of the sixteen digits at most: 1000² over 1e-4.
    assert pu21_ssim(result, small) == pytest.approx(expected, rel=1e-9)


def test_ssim_of_constants_is_the_comparison_of_brightness():
    bright, dark = (np.full((12, 13, 3), level / WHITE_NITS) for level in (100.0, 1.0))
    levels = pu21_encode(torch.tensor([100.0, 1.0], dtype=torch.float64)).numpy()
    a = SSIM_FLOORS[0]
    expected = (2 * levels.prod() + a) / ((levels**2).sum() + a)
    assert pu21_ssim(bright, dark) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_1_for_the_truth_symmetric_and_falls_with_noise(truth):
    assert pu21_ssim(truth, truth) == pytest.approx(1.0, abs=1e-12)
    noise = np.exp(np.random.default_rng(0).standard_normal(truth.shape))
    values = [pu21_ssim(truth * noise**strength, truth) for strength in (0.05, 0.2, 0.8)]
    assert 1 > values[0] > values[1] > values[2] > 0
    assert pu21_ssim(truth, truth * noise) == pytest.approx(pu21_ssim(truth * noise, truth))
    # Grey stripes against their own negative, about a mean that both share.
    stripes = np.tile([0.0, 1.0], 20)[None, :, None] * np.ones((16, 1, 3))
    assert pu21_ssim(1 - stripes, stripes) < -0.5


# --- masks and gain -----------------------------------------------------------------------------


def test_clipped_pixels_have_a_channel_of_at_least_98_percent():
    photo = np.zeros((1, 4, 3), dtype=np.uint8)
    photo[0, :, 1] = [249, 250, 255, 0]  # 249 / 255 = 0.976, 250 / 255 = 0.9804
    assert clipped_pixels(photo).tolist() == [[False, True, True, False]]
    with pytest.raises(ValueError, match=r"photo: expected \(H, W, 3\) uint8, got .* float64"):
        clipped_pixels(photo / 255)


def photo_of(truth: np.ndarray) -> np.ndarray:
    return np.rint(255 * truth.clip(0, 1) ** (1 / 2.2)).astype(np.uint8)


@pytest.mark.parametrize("factor", [1e-4, 0.5, 1.0, 300.0])
def test_gain_undoes_a_factor(truth, factor):
    assert fit_gain(truth * factor, truth, photo_of(truth)) == pytest.approx(1 / factor, rel=1e-12)


def test_gain_is_least_squares_over_well_exposed_pixels_alone(truth):
    photo = photo_of(truth)
    rng = np.random.default_rng(0)
    result = truth * np.exp(0.3 * rng.standard_normal(truth.shape))
    usable = ((photo > 0.02 * 255) & (photo < 0.98 * 255) & (truth < 1)).all(axis=2)
    expected = np.linalg.lstsq(result[usable].reshape(-1, 1), truth[usable].ravel(), rcond=None)
    assert fit_gain(result, truth, photo) == pytest.approx(expected[0].item(), rel=1e-9)
    result[~usable] = 1e5
    assert fit_gain(result, truth, photo) == pytest.approx(expected[0].item(), rel=1e-9)


def test_gain_leaves_out_clipped_pixels_that_jpeg_darkened(truth):
    photo = photo_of(truth)
    clipped = (truth >= 1).any(axis=2)
    photo[clipped] = 200  # inside (0.02, 0.98): the photo alone would let them in
    result = truth.copy()
    result[clipped] = 50.0
    assert fit_gain(result, truth, photo) == pytest.approx(1.0, rel=1e-12)


def test_gain_needs_100_pixels():
    truth = np.full((10, 20, 3), 0.5)
    photo = np.full((10, 20, 3), 255, dtype=np.uint8)
    photo[:5] = 128
    assert fit_gain(truth * 2, truth, photo) == pytest.approx(0.5)
    photo[0, 0] = 255
    with pytest.raises(ValueError, match=r"photo: expected at least 100 .* pixels .* got 99"):
        fit_gain(truth, truth, photo)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_gain_of_a_result_without_light(truth, value):
    with pytest.raises(ValueError, match="result: expected"):
        fit_gain(np.full_like(truth, value), truth, photo_of(truth))


# --- camera-response correction -----------------------------------------------------------------


def chromaticity(xyz: np.ndarray) -> np.ndarray:
    sums = xyz[..., 0] + 15 * xyz[..., 1] + 3 * xyz[..., 2]
    return np.stack([4 * xyz[..., 0] / sums, 9 * xyz[..., 1] / sums], axis=-1)


def with_chromaticity(luminance: np.ndarray, uv: np.ndarray) -> np.ndarray:
    u, v = uv[..., 0], uv[..., 1]
    denominator = 6 * u - 16 * v + 12
    x, y = 9 * u / denominator, 4 * v / denominator
    xyz = np.stack([x / y * luminance, luminance, (1 - x - y) / y * luminance], axis=-1)
    return xyz @ np.linalg.inv(RGB_TO_XYZ).T


def pq(values: np.ndarray, function=pq_encode) -> np.ndarray:
    return function(torch.from_numpy(np.ascontiguousarray(values))).numpy()


def test_correction_leaves_the_truth_alone(truth):
    assert pu21_psnr(crf_correct(truth, truth), truth) > 60


def test_correction_agrees_with_the_published_steps(truth):
    # Another way to the same fits: polyfit in PQ; stacked rows in place of the normal equations.
    rng = np.random.default_rng(0)
    result = truth**1.3 * np.array([1.2, 1.0, 0.7]) * np.exp(0.2 * rng.standard_normal(truth.shape))
    xyz = [np.clip(image * WHITE_NITS, 0.005, 4000) @ RGB_TO_XYZ.T for image in (result, truth)]
    source, target = (pq(image[..., 1]).ravel() for image in xyz)
    luminance = pq(np.polyval(np.polyfit(source, target, 3), source), pq_decode)
    u, v = (chromaticity(xyz[0]).reshape(-1, 2) * 410 / 255).T
    terms = np.stack([u**3, v**3, u**2, v**2, u * v, u, v, np.ones_like(u)], axis=1)
    identity = np.zeros((8, 2))
    identity[5, 0] = identity[6, 1] = 1
    ridge = np.sqrt(0.01 * len(u) / 8)
    rows = np.concatenate([terms, ridge * np.eye(8)])
    targets = chromaticity(xyz[1]).reshape(-1, 2) * 410 / 255
    weights = np.linalg.lstsq(rows, np.concatenate([targets, ridge * identity]), rcond=None)[0]
    expected = with_chromaticity(luminance, terms @ weights * 255 / 410).clip(min=0)
    actual = crf_correct(result, truth) * WHITE_NITS
    # The two matrices differ in the fifth digit.
    np.testing.assert_allclose(actual.reshape(-1, 3), expected, rtol=5e-3, atol=1e-2)


def test_correction_undoes_a_cubic_of_luminance(truth):
    xyz = np.clip(truth * WHITE_NITS, 0.005, 4000) @ RGB_TO_XYZ.T
    encoded = pq(xyz[..., 1])
    # The inverse of a mild curve is near enough to a cubic to be found again.
    bent = pq(encoded + 0.05 * encoded * (1 - encoded), pq_decode)
    result = truth * (bent / xyz[..., 1])[..., None]
    before, after = pu21_psnr(result, truth), pu21_psnr(crf_correct(result, truth), truth)
    assert before < 35
    assert after > 50


def test_correction_improves_a_colour_cast_but_invents_no_range(truth):
    cast = truth * np.array([1.3, 1.0, 0.7])
    assert pu21_psnr(crf_correct(cast, truth), truth) > pu21_psnr(cast, truth) + 3
    clipped = truth.clip(0, 1)
    mask = (truth >= 1).any(axis=2)
    assert pu21_psnr(crf_correct(clipped, truth), truth, mask) < 30


@pytest.mark.parametrize("value", [0.0, 1e9, -1.0])
def test_correction_of_a_constant_is_finite(truth, value):
    corrected = crf_correct(np.full_like(truth, value), truth)
    assert np.isfinite(corrected).all()
    assert (corrected >= 0).all()
