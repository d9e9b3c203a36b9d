import dataclasses
import signal

import pytest
import torch

from dkpn import DKPN
from dkpn.camera import CameraConfig
from dkpn.curve_fit import code_values, fit_curve, predicted_curve
from dkpn.losses import BRIGHT, pu21_units
from dkpn.schedule import StopRequest
from dkpn.train import train
from dkpn.training_pairs import DataConfig, TrainingPairs
from tests.dkpn.training_runs import (
    SMALLEST,
    tiny_config,
    tiny_pairs,
    tiny_scenes,
    tiny_validation,
)


@pytest.fixture(scope="module")
def pairs():
    """Photos by cameras of one family, whose curves are far from sRGB's."""
    camera = CameraConfig(curve_weights=(1.0, 0.0, 0.0))
    return TrainingPairs(tiny_scenes(), DataConfig(crop_size=24), camera=camera)


def fresh():
    torch.manual_seed(0)
    return DKPN(SMALLEST)


def errors(network, pairs, indices):
    """Squared errors of the predicted curves, from the pictures."""
    photo, truth = pairs.batch(indices)
    decoded = network(photo).preliminary
    difference = pu21_units(decoded) - pu21_units(truth)
    used = ((photo < BRIGHT) & (truth < 1.0)).float()
    return (used * difference.square()).sum((1, 2, 3)) / used.sum((1, 2, 3))


def test_the_squared_error_is_that_of_the_pictures(pairs):
    network, indices = fresh(), range(5)
    values = code_values(network.pooled, *pairs.batch(indices))
    actual = values.squared_error(predicted_curve(network, values.statistics))
    # The network reads 1024 places of the curve and interpolates between them.
    torch.testing.assert_close(actual, errors(network, pairs, indices), rtol=2e-4, atol=1e-3)
    chosen = torch.tensor([3, 1])
    torch.testing.assert_close(
        values[chosen].squared_error(torch.full((2, 256), 0.5)),
        values.squared_error(torch.full((5, 256), 0.5))[chosen],
    )


def test_a_picture_that_is_all_clipped_has_no_error_and_no_gradient_of_nan(pairs):
    network = fresh()
    values = code_values(network.pooled, torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), 2.0))
    curve = torch.full((1, 256), 0.5, requires_grad=True)
    error = values.squared_error(curve)
    error.sum().backward()
    assert error.item() == 0.0
    assert curve.grad is not None
    assert torch.equal(curve.grad, torch.zeros(1, 256))


def test_the_fit_lowers_the_error_on_photos_that_it_has_not_seen(pairs):
    network, unseen = fresh(), range(10_000, 10_032)
    before = errors(network, pairs, unseen).log().mean()
    others = {
        name: value.clone()
        for name, value in network.state_dict().items()
        if not name.startswith(("pooled", "preliminary"))
    }
    fit_curve(network, pairs, 512)
    assert errors(network, pairs, unseen).log().mean() < before - 0.7  # 3 dB
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in others.items())
    assert all(parameter.grad is None for parameter in network.parameters())
    photo, _ = pairs.batch(range(512))
    standardised = network.pooled.statistics(photo) - network.pooled.get_buffer("mean")
    assert standardised.mean(0).abs().max() < 1e-4


def test_few_photos_standardise_and_fit_nothing(pairs):
    network = fresh()
    parameters = {name: value.detach().clone() for name, value in network.named_parameters()}
    fit_curve(network, pairs, 3)
    assert all(torch.equal(parameters[name], value) for name, value in network.named_parameters())
    photo, _ = pairs.batch(range(64))
    expected = network.pooled.statistics(photo).mean(0)
    torch.testing.assert_close(network.pooled.get_buffer("mean"), expected)


def test_a_fit_is_the_same_each_time(pairs):
    first, second = fresh(), fresh()
    fit_curve(first, pairs, 64, seed=3)
    torch.manual_seed(5)
    fit_curve(second, pairs, 64, seed=3)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_no_more_photos_are_made_than_the_time_allows(pairs):
    short, asked = fresh(), []

    class Counting(TrainingPairs):
        def batch(self, indices):
            asked.extend(indices)
            return super().batch(indices)

    counting = Counting(tiny_scenes(), DataConfig(crop_size=24))
    fit_curve(short, counting, 10**6, seconds=0.0)
    assert asked == list(range(64))
    fit_curve(short, counting, 10**6, seconds=0.5)
    assert 128 <= len(asked) < 10**5


def test_training_starts_with_the_fitted_curve(tmp_path):
    scenes = tiny_scenes()
    run = tiny_config(SMALLEST, iterations=40, curve_photos=80, learning_rate=1e-12)
    network = train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    expected = fresh()
    fit_curve(expected, tiny_pairs(scenes, run), 80)
    actual = network.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6)
    assert network.preliminary.predict.weight.abs().max() > 1e-4  # zeros before the fit


def test_a_stop_during_the_fit_saves_nothing_and_the_next_start_is_a_fresh_one(tmp_path):
    scenes, run = tiny_scenes(), tiny_config(SMALLEST, iterations=128, curve_photos=128)
    pairs, stop = tiny_pairs(scenes, run), StopRequest()
    make = pairs.batch

    def batch(indices):
        stop.number = signal.SIGTERM
        return make(indices)

    pairs.batch = batch
    train(run, pairs, tiny_validation(scenes), tmp_path, stop=stop, quiet=True)
    assert stop.number == signal.SIGTERM
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "checkpoints").exists()
    short = dataclasses.replace(run, train=dataclasses.replace(run.train, minutes=1e-4))
    train(short, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    assert (tmp_path / "model.safetensors").exists()
