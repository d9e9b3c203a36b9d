import math

import pytest
import torch

from dkpn.losses import LossConfig, fit_gain, reconstruction_loss
from dkpn.model import DKPNOutput

KINDS = ("pu21", "mu-law", "log")


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
    from dkpn.color import pu21_encode

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


@pytest.mark.parametrize(
    "fields", [{"kind": "l2"}, {"clipped_weight": -1.0}, {"preliminary_weight": float("nan")}]
)
def test_wrong_settings_name_the_field(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LossConfig(**fields)
