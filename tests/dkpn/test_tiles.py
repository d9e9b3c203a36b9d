import itertools

import pytest
import torch

from dkpn import DKPN, DKPNConfig
from dkpn.tiles import (
    bytes_per_pixel,
    plan_tiles,
    reach,
    reconstruct_tiles,
    reduced,
    tile_side,
)

TINY = DKPNConfig(
    kernel_size=3,
    width=4,
    pooled_width=4,
    channel_multipliers=(1, 2),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)


def shaken(config=TINY) -> DKPN:
    """A network whose every layer has an effect."""
    torch.manual_seed(0)
    model = DKPN(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def photo(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def tiled(model: DKPN, image: torch.Tensor, side: int, panorama: bool = False) -> torch.Tensor:
    result = torch.full(image.shape, torch.nan)

    def store(tile, core):
        result[:, tile.top : tile.bottom, tile.left : tile.right] = core

    shares = []
    reconstruct_tiles(model, image, store, side=side, panorama=panorama, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    return result


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (70, 61), (40, 200), (129, 96)])
def test_tiles_give_the_result_of_the_whole_image(size):
    model, image = shaken(), photo(*size)
    with torch.inference_mode():
        expected = model(image[None] / 255).result[0]
    side = 2 * reach(TINY) + 16
    # The same sums; a convolution may choose another order for another width.
    torch.testing.assert_close(tiled(model, image, side), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        DKPNConfig(
            kernel_size=9,
            width=4,
            pooled_width=4,
            unshuffle=3,
            channel_multipliers=(1, 1, 1),
            encoder_blocks=(0, 1, 2),
            decoder_blocks=(1, 0),
        ),
    ],
)
def test_a_pixel_changes_results_up_to_the_reach_and_not_beyond(config):
    model, radius = shaken(config), reach(config)
    size = 2 * radius + 3 * config.size_multiple
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, size, size, generator=generator)
    farthest = 0
    with torch.inference_mode():
        pooled = model.pool(image)
        before = model(image, pooled).result
        for offset in itertools.product((0, 1, config.size_multiple - 1), repeat=2):
            row, column = (size // 2 + step for step in offset)
            changed = image.clone()
            changed[..., row, column] = 1 - changed[..., row, column]
            difference = (model(changed, pooled).result != before).any(1)[0].nonzero()
            distance = (difference - torch.tensor((row, column))).abs().max().item()
            farthest = max(farthest, distance)
    assert farthest <= radius
    # The reach is no guess: some pixel gets there, but for rounding up and weights near zero.
    assert farthest > radius - 2 * config.size_multiple


def test_panorama_has_no_seam():
    model, image = shaken(), photo(48, 96)
    halo = reach(TINY)
    with torch.inference_mode():
        pooled = model.pool(image[None] / 255)
        wrapped = torch.cat((image[..., -halo:], image, image[..., :halo]), -1)
        expected = model(wrapped[None] / 255, pooled).result[0, :, :, halo:-halo]
    for side in (2 * halo + 16, 1024):
        around = tiled(model, image, side, panorama=True)
        torch.testing.assert_close(around, expected, rtol=1e-5, atol=1e-6)
    # A panorama turned by whole cells gives the turned result, but for the response curve: what is
    # pooled over the reduced image still ends at its sides. A photo differs by far more.
    turned = tiled(model, image.roll(32, -1), 1024, panorama=True).roll(-32, -1)
    torch.testing.assert_close(turned, around, rtol=5e-3, atol=1e-4)
    shown = tiled(model, image.roll(32, -1), 1024).roll(-32, -1)
    assert (shown - around).abs().max() > 10 * (turned - around).abs().max()
    plain = tiled(model, image, 1024)
    assert (plain - expected).abs().max() > 1e-3


@pytest.mark.parametrize("panorama", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2000), (300, 200), (64, 64)])
def test_cores_cover_each_pixel_once_and_tiles_stay_small(height, width, panorama):
    side, halo, multiple = 96, 32, 8
    covered = torch.zeros(height, width, dtype=torch.int32)
    for tile in plan_tiles(height, width, side, halo, multiple, panorama):
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert tile.seen_bottom - tile.seen_top <= side
        assert tile.seen_right - tile.seen_left <= side
        assert tile.seen_top % multiple == tile.seen_left % multiple == 0
        assert tile.seen_top == max(0, tile.top - halo)
        assert tile.seen_bottom == min(height, tile.bottom + halo) or height <= side
        if panorama:
            assert tile.left - tile.seen_left == halo
            assert tile.seen_right - tile.right == halo
    assert (covered == 1).all()


def test_memory_decides_the_side():
    config = DKPNConfig()
    side = tile_side(config, 4.0)
    assert side % config.size_multiple == 0
    assert side**2 * bytes_per_pixel(config) <= 4 * 2**30
    assert (side + config.size_multiple) ** 2 * bytes_per_pixel(config) > 4 * 2**30
    assert tile_side(config) >= 2 * reach(config) + 64
    with pytest.raises(
        ValueError, match=r"max_memory: 0\.01 GiB is not enough .* at least 0\.\d\d"
    ):
        tile_side(config, 0.01)


@pytest.mark.parametrize("size", [(30, 100), (513, 37), (1031, 777), (1, 3000)])
def test_images_are_reduced_in_strips_as_at_once(size):
    image = photo(*size)
    longest = max(size)
    shape = [max(1, round(side * 64 / longest)) for side in size]
    expected = image[None] / 255
    if longest > 64:
        expected = torch.nn.functional.interpolate(expected, shape, mode="area")
    torch.testing.assert_close(reduced(image, 64), expected, rtol=1e-5, atol=1e-6)
