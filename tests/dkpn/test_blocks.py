import pytest
import torch

from dkpn.blocks import EncoderDecoder, GuidedStage, PooledBranch, soft_masks


def test_soft_masks_are_the_ramps_of_their_equation():
    values = torch.tensor([0.0, 0.025, 0.05, 0.5, 0.95, 0.975, 1.0], dtype=torch.float64)
    image = values.expand(1, 3, 1, -1)
    over, under = soft_masks(image, tau=0.05).chunk(2, dim=1)
    # The ramps divide by τ, which magnifies the rounding of the subtraction 20 times.
    tolerance = 40 * torch.finfo(torch.float64).eps
    expected = torch.tensor([0, 0, 0, 0, 0, 0.5, 1], dtype=torch.float64)
    torch.testing.assert_close(over, expected.expand_as(over), rtol=0, atol=tolerance)
    torch.testing.assert_close(under, expected.flip(0).expand_as(under), rtol=0, atol=tolerance)


def test_soft_masks_keep_the_channels_apart():
    image = torch.full((1, 3, 1, 1), 0.5)
    image[0, 0] = 1.0
    image[0, 2] = 0.0
    assert soft_masks(image).flatten().tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_squared_masks_are_squares():
    image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(soft_masks(image, 0.3, squared=True), soft_masks(image, 0.3).square())


def test_guidance_changes_features_only_where_there_is_a_mask():
    torch.manual_seed(0)
    stage = GuidedStage(4, blocks=0, guidance=True)
    features = torch.randn(1, 4, 3, 3)
    masks = torch.zeros(1, 6, 3, 3)
    masks[0, 1, 1, 1] = 1.0
    changed = (stage(features, masks) != features).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 1]]
    assert torch.equal(GuidedStage(4, 0, guidance=False)(features, masks), features)


def test_the_masks_guide_every_scale():
    torch.manual_seed(0)
    network = EncoderDecoder(3, (4, 8, 8), (1, 1, 1), (1, 1), guidance=True, pooled_channels=5)
    features, pooled = torch.randn(1, 3, 8, 8), torch.randn(1, 5)
    masks = torch.rand(1, 6, 8, 8)
    network(features, masks, pooled).square().sum().backward()
    stages = [*network.encoders, *network.decoders]
    assert len(stages) == 5
    for stage in stages:
        assert stage.guidance.scale_and_shift.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (5, 2), (64, 64)])
def test_pooled_branch_takes_any_size(size):
    branch = PooledBranch(8)
    assert branch(torch.rand(2, 3, *size)).shape == (2, 8)


def test_statistics_are_shares_of_brightness_and_of_steps_at_each():
    branch = PooledBranch(8)
    codes = torch.zeros(2, 5)
    codes[:, 3:] = 100.0  # one vertical edge of 100 code values, of mean brightness 50
    statistics = branch.statistics((codes / 255.0).expand(1, 3, 2, 5)).square()
    levels, steps = len(branch.BRIGHTNESS) + 1, len(branch.STEPS) + 1
    of_steps = statistics[0, : levels * steps].reshape(levels, steps)
    of_levels = statistics[0, levels * steps :]
    # A channel's pairs are 2 of 8 to the right at the edge, and 5 downwards with none.
    dark, edge, bright = 0, 7, 10  # classes of brightness from 0, 40 and 96 on
    assert of_levels.tolist() == pytest.approx(
        [{dark: 7 / 13, edge: 2 / 13, bright: 4 / 13}.get(level, 0.0) for level in range(levels)]
    )
    expected = torch.zeros(levels, steps)
    expected[dark, 0] = expected[bright, 0] = expected[edge, steps - 1] = 1.0
    torch.testing.assert_close(of_steps, expected)


def test_statistics_tell_images_of_a_batch_apart_and_ignore_the_size():
    branch = PooledBranch(8)
    images = torch.rand(2, 3, 8, 12)
    both = branch.statistics(images)
    for image, statistics in zip(images, both, strict=True):
        torch.testing.assert_close(branch.statistics(image[None])[0], statistics)
    assert (both[0] - both[1]).abs().max() > 0.01
    flat = torch.full((1, 3, 4, 4), 0.5)
    large = torch.full((1, 3, 40, 30), 0.5)
    torch.testing.assert_close(branch.statistics(flat), branch.statistics(large))


def test_standardised_statistics_have_mean_0_and_deviation_up_to_1():
    torch.manual_seed(0)
    branch = PooledBranch(8)
    photos = torch.rand(16, 3, 8, 8) ** torch.linspace(0.5, 3, 16).reshape(-1, 1, 1, 1)
    seen = []
    branch.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    branch.standardise(branch.statistics(photos))
    branch(photos)
    assert seen[0].mean(0).abs().max() < 1e-4
    deviation = seen[0].std(0, correction=0)
    assert 0.5 < deviation.max() < 1.0


def test_upsampling_starts_without_a_checkerboard():
    torch.manual_seed(0)
    network = EncoderDecoder(3, (4, 8), (0, 0), (0,), guidance=False, pooled_channels=5)
    (up,) = network.ups
    larger = up(torch.randn(1, 8, 3, 3))
    assert larger.shape == (1, 4, 6, 6)
    cells = larger.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    # Equal weights; a convolution may still sum its channels in another order.
    torch.testing.assert_close(cells, cells[..., :1].expand_as(cells), rtol=1e-5, atol=1e-6)
