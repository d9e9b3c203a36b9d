import math

import pytest
import torch

from dkpn.color import pq_encode, pu21_encode
from dkpn.losses import KINDS, LossConfig, fit_gain, reconstruction_loss
from dkpn.model import DKPNOutput


def scene(seed=0, size=24):
    """A truth that clips in a corner, and the photo that a linear camera makes of it."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(2, 3, size, size, generator=generator) * 0.8 + 0.05
    truth[:, :, :8, :8] *= 12.0
    return truth, truth.clamp(0.0, 1.0)


def output(result, preliminary=None):
    empty = torch.zeros(0)
    return DKPNOutput(result, result if preliminary is None else preliminary, empty, empty, None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_the_best_result_and_its_scale_does_not_matter(kind):
    truth, photo = scene()
    config = LossConfig(kind=kind, preliminary_weight=0.0)
    best = reconstruction_loss(output(truth), photo, truth, config)
    scaled = reconstruction_loss(output(3.0 * truth), photo, truth, config)
    clipped = reconstruction_loss(output(photo), photo, truth, config)
    assert best.total < clipped.total
    # Scaling and the fitted gain round once each, in float32; the PU21 loss has log(0 + 1e-2).
    assert scaled.total.item() == pytest.approx(best.total.item(), abs=1e-4)
    assert best.psnr > 60


def test_psnr_is_the_one_of_the_pu21_encoding():
    truth, photo = scene()
    expected = []
    for one, other in zip(photo, truth, strict=True):
        error = (pu21_encode(one * 203.0) - pu21_encode(other * 203.0)).square().mean()
        expected.append(20 * math.log10(256.0) - 10 * math.log10(error))
    terms = reconstruction_loss(output(photo), photo, truth, LossConfig())
    # Well-exposed pixels agree exactly, so that the gain is 1 up to float32 rounding.
    assert terms.psnr.item() == pytest.approx(sum(expected) / 2, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_clipped_term_sees_clipped_pixels_only(kind):
    truth, photo = scene()
    # Dark pixels: neither clipped nor among those that the gain is fitted on.
    truth[:, :, -4:] = photo[:, :, -4:] = 0.01
    config = LossConfig(kind=kind)
    exact = reconstruction_loss(output(truth), photo, truth, config)
    clipped = (photo >= 0.98).any(1, keepdim=True)
    dark = photo.amax(1, keepdim=True) < 0.02
    terms = reconstruction_loss(output(truth * (1 + 0.3 * clipped)), photo, truth, config)
    assert terms.image > exact.image
    assert terms.clipped > exact.clipped
    terms = reconstruction_loss(output(truth * (1 + 0.3 * dark)), photo, truth, config)
    assert terms.image > exact.image
    assert terms.clipped == exact.clipped


def test_preliminary_term_has_no_gain_and_ignores_clipped_pixels():
    truth, photo = scene()
    config = LossConfig()
    exact = reconstruction_loss(output(truth), photo, truth, config).preliminary
    clipped = reconstruction_loss(output(truth, photo), photo, truth, config).preliminary
    scaled = reconstruction_loss(output(truth, 1.2 * truth), photo, truth, config).preliminary
    assert clipped == exact
    assert scaled > exact


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_lead_from_the_clipped_photo_to_the_truth(kind):
    truth, photo = scene()
    log_result = photo.log().requires_grad_()
    reconstruction_loss(
        output(log_result.exp()), photo, truth, LossConfig(kind=kind)
    ).total.backward()
    assert log_result.grad is not None
    assert torch.isfinite(log_result.grad).all()
    bright = (photo == 1.0) & (truth > 1.0)
    # Descent brightens every clipped value that the truth has brighter.
    assert (log_result.grad[bright] < 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_photos_give_finite_loss_and_gradient(kind, level):
    """A crop may hold nothing but black, or nothing but clipped pixels."""
    photo = torch.full((1, 3, 8, 8), level)
    truth = torch.full((1, 3, 8, 8), 2.0 * level)
    result = photo.clone().requires_grad_()
    terms = reconstruction_loss(output(result), photo, truth, LossConfig(kind=kind))
    terms.total.backward()
    assert math.isfinite(terms.total.detach())
    assert result.grad is not None
    assert torch.isfinite(result.grad).all()


def test_gain_is_the_least_squares_factor_and_differentiable():
    truth, _ = scene()
    mask = torch.ones(2, 1, 24, 24, dtype=torch.bool)
    result = (2.5 * truth.double()).requires_grad_()
    gain = fit_gain(result, truth.double(), mask)
    # float64 sums of about a thousand products
    torch.testing.assert_close(gain, torch.full_like(gain, 1 / 2.5), rtol=1e-12, atol=0)
    gain.sum().backward()
    assert result.grad is not None
    assert (result.grad != 0).any()


def test_gain_is_one_without_enough_pixels():
    truth, _ = scene()
    mask = torch.zeros(2, 1, 24, 24, dtype=torch.bool)
    mask[:, :, 0, :3] = True
    assert fit_gain(2.0 * truth, truth, mask).flatten().tolist() == [1.0, 1.0]


# --- values computed by hand ---------------------------------------------------------------------

WHITE, PEAK = 203.0, 4000.0  # cd/m²


def checkerboard(bright, dark, size=16):
    """A result of two values in turn, of which the first is at the top left: (1, 3, size, size)."""
    turn = torch.arange(size)[:, None] + torch.arange(size)
    return torch.where(turn % 2 == 0, bright, dark).expand(1, 3, size, size).contiguous()


def encoded(kind, light):
    """Light, 1.0 = 203 cd/m², in the encoding of a kind, in float64 and without the package."""
    if kind == "log":
        return math.log(light)
    if kind == "mu-law":
        return math.log1p(5000.0 * light * WHITE / PEAK) / math.log1p(5000.0)
    encode = {"pu21": pu21_encode, "pq": pq_encode}[kind]
    return float(encode(torch.tensor(light * WHITE, dtype=torch.float64)))


def distance(kind, differences):
    """The distance between pictures of which all pixels' encoded differences are these."""
    if kind == "pu21":
        square = sum(difference**2 for difference in differences) / len(differences)
        return math.log(square + 1e-2)
    return sum(abs(difference) for difference in differences) / len(differences)


def black_photo_terms(result, truth, **fields):
    """Terms of a photo without well-exposed pixels, so that no gain is fitted."""
    photo = torch.zeros_like(truth)
    return reconstruction_loss(output(result), photo, truth, LossConfig(**fields))


# A few roundings in float32, of values up to 600 in PU21 units whose differences are compared.
HAND = 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_mean_of_its_encoded_differences(kind):
    truth = torch.full((1, 3, 16, 16), 0.5)
    terms = black_photo_terms(checkerboard(2.0, 0.25), truth, kind=kind)
    steps = [encoded(kind, light) - encoded(kind, 0.5) for light in (2.0, 0.25)]
    assert terms.image.item() == pytest.approx(distance(kind, steps), rel=HAND)
    assert terms.total.item() == terms.image.item()
    for name in ("clipped", "preliminary", "multi_scale", "gradient"):
        assert getattr(terms, name) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_multi_scale_term_compares_averages_of_linear_light(kind):
    truth = torch.full((1, 3, 16, 16), 0.5)
    result = checkerboard(2.0, 0.25)
    # The left half is flat and right: its distance stays 0 at every scale.
    result[..., :8] = 0.5
    terms = black_photo_terms(result, truth, kind=kind, multi_scale_weight=0.7)
    # Squares of 2, 4 and 8 pixels hold as many of both: (2 + 0.25) / 2.
    step = encoded(kind, 1.125) - encoded(kind, 0.5)
    expected = distance(kind, [step, 0.0])
    assert terms.multi_scale.item() == pytest.approx(expected, rel=HAND)
    total = terms.image + 0.7 * terms.multi_scale
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-6)  # one rounding


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_term_compares_steps_between_neighbours(kind):
    """A wrong brightness costs nothing, a step that the truth does not have costs its height."""
    flat = torch.full((1, 3, 16, 16), 0.5)
    brighter = black_photo_terms(2.0 * flat, flat, kind=kind, gradient_weight=1.0)
    assert brighter.gradient.item() == pytest.approx(distance(kind, [0.0]), abs=HAND)
    edge = flat.clone()
    edge[..., 8:] = 2.0
    terms = black_photo_terms(edge, flat, kind=kind, gradient_weight=0.3)
    step = encoded(kind, 2.0) - encoded(kind, 0.5)
    # 16 of the 16 · 15 steps to the right, none of the 15 · 16 steps down.
    expected = distance(kind, [step] * 16 + [0.0] * (2 * 16 * 15 - 16))
    assert terms.gradient.item() == pytest.approx(expected, rel=HAND)
    total = terms.image + 0.3 * terms.gradient
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-6)  # one rounding


@pytest.mark.parametrize("size", [(1, 2), (3, 5), (9, 17)])
def test_the_optional_terms_take_pictures_of_any_size(size):
    truth = torch.full((1, 3, *size), 0.5)
    fields = {"multi_scale_weight": 1.0, "gradient_weight": 1.0}
    result = (2.0 * truth).requires_grad_()
    terms = black_photo_terms(result, truth, **fields)
    terms.total.backward()
    # Cells over the border are the mean of what is inside: flat pictures stay flat.
    assert terms.multi_scale.item() == pytest.approx(terms.image.item(), rel=HAND)
    assert math.isfinite(terms.total.detach())
    assert result.grad is not None
    assert torch.isfinite(result.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_parts(kind):
    """Also where an image has no clipped, or no well-exposed, pixels."""
    truth, photo = scene()
    black = torch.full_like(truth, 1e-3)
    truths = torch.cat((truth, black))
    photos = torch.cat((photo, black))
    config = LossConfig(kind=kind, multi_scale_weight=0.5, gradient_weight=0.5)
    result = 1.1 * truths + 0.01
    whole = reconstruction_loss(output(result), photos, truths, config)
    parts = [
        reconstruction_loss(output(result[i : i + 1]), photos[i : i + 1], truths[i : i + 1], config)
        for i in range(4)
    ]
    for name in ("total", "image", "clipped", "preliminary", "multi_scale", "gradient", "psnr"):
        expected = sum(getattr(part, name).item() for part in parts) / 4
        # Sums of four numbers in float32
        assert getattr(whole, name).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"gradient_weight": -0.5},
        {"multi_scale_weight": float("nan")},
        {"kind": "l2"},
        {"clipped_weight": -1.0},
        {"preliminary_weight": float("nan")},
    ],
)
def test_wrong_settings_name_the_field(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LossConfig(**fields)
