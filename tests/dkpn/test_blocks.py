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


def test_statistics_are_shares_and_mean_differences():
    branch = PooledBranch(8)
    image = torch.zeros(1, 3, 2, 4)
    image[:, :, :, 2:] = 0.5  # one vertical edge of height 0.5, seen from its left side
    statistics = branch.statistics(image).square()
    shares, differences = statistics.reshape(2, branch.BINS, 3).unbind(0)
    assert shares.sum(0).tolist() == pytest.approx([1.0] * 3)
    assert shares[0].tolist() == pytest.approx([0.5] * 3)
    assert shares[branch.BINS // 2].tolist() == pytest.approx([0.5] * 3)
    # Half of the dark pixels lie at the edge, none of the bright ones has its neighbour there.
    assert differences[0].tolist() == pytest.approx([0.25] * 3)
    assert differences[branch.BINS // 2].tolist() == [0.0] * 3


def test_statistics_of_a_large_image_read_a_subset_of_true_neighbours(monkeypatch):
    branch = PooledBranch(8)
    # A ramp: all differences are equal, whichever pixels are read.
    image = torch.linspace(0, 1, 64).expand(1, 3, 48, 64)
    whole = branch.statistics(image)[:, 3 * branch.BINS :].square()
    monkeypatch.setattr(PooledBranch, "SAMPLES", 16)
    part = branch.statistics(image)[:, 3 * branch.BINS :].square()
    # The last bin holds the last column, which has no right neighbour: it alone may differ.
    torch.testing.assert_close(part[:, :-3], whole[:, :-3], rtol=1e-5, atol=1e-6)  # float32 sums


def test_upsampling_starts_without_a_checkerboard():
    torch.manual_seed(0)
    network = EncoderDecoder(3, (4, 8), (0, 0), (0,), guidance=False, pooled_channels=5)
    (up,) = network.ups
    larger = up(torch.randn(1, 8, 3, 3))
    assert larger.shape == (1, 4, 6, 6)
    cells = larger.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    # Equal weights; a convolution may still sum its channels in another order.
    torch.testing.assert_close(cells, cells[..., :1].expand_as(cells), rtol=1e-5, atol=1e-6)
