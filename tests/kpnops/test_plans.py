"""Which kernels a call launches, on how large a grid: pure functions of shapes, tested on meta
tensors."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels to plan")

from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.triton_backend import is_fast
from tests.helpers_plans import plans

INT32_MAX = 2**31 - 1


def names(launches):
    return [launch.kernel.__name__.strip("_") for launch in launches]


def test_few_channels_take_one_kernel_for_all_gradients():
    forward, backward = plans((1, 3, 40, 300), kernel_size=(5, 5))
    assert names(forward) == ["tile_fwd_kernel"]
    assert names(backward) == ["fused_bwd_kernel"]


def test_many_channels_take_the_forward_kernel_for_the_input():
    _, backward = plans((1, 64, 40, 300), kernel_size=(3, 3))
    assert names(backward) == ["tile_fwd_kernel", "tile_bwd_filters_kernel"]
    assert backward[0].constants["TRANSPOSED"]
    assert backward[1].constants["WITH_CHANNEL"]


def test_many_taps_part_the_gradients_of_the_filters():
    """What does not fit into registers together takes launches of its own."""
    _, backward = plans((1, 64, 40, 300), kernel_size=(7, 7))
    assert names(backward) == ["tile_fwd_kernel", "tile_bwd_filters_kernel", "tile_fwd_kernel"]
    assert not backward[1].constants["WITH_CHANNEL"]
    _, backward = plans((1, 64, 40, 300), kernel_size=(7, 7), padding_mode="replicate")
    assert names(backward)[:3] == [
        "tile_fwd_kernel",
        "gather_bwd_spatial_kernel",
        "tile_fwd_kernel",
    ]


def test_channel_filter_per_image_takes_partial_sums():
    _, backward = plans((2, 64, 40, 300), kernel_size=(3, 3), form="image")
    assert names(backward) == [
        "tile_fwd_kernel",
        "tile_bwd_channel_kernel",
        "tile_bwd_filters_kernel",
    ]


def test_shared_gain_is_summed_over_images():
    _, backward = plans((2, 3, 40, 300), kernel_size=(3, 3), form="shared")
    assert names(backward) == ["gather_fwd_kernel", "fused_bwd_kernel"]
    assert backward[0].constants["SUM_BATCH"]


@pytest.mark.parametrize("padding_mode", ["replicate", "reflect", "circular"])
def test_padding_that_reads_pixels_again_adds_border_launches(padding_mode):
    _, backward = plans((1, 3, 40, 300), kernel_size=(3, 3), padding_mode=padding_mode)
    assert names(backward) == ["fused_bwd_kernel"] + 8 * ["gather_bwd_input_kernel"]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 3), "stride": (2, 1)},
        {"kernel_size": (3, 3), "dilation": (1, 2)},
        {"kernel_size": (7, 8)},  # more than 49 taps
        {"kernel_size": (7, 7), "dtype": torch.float64},  # more than 32
        {"kernel_size": (1, 13)},  # more than 12 along a side
    ],
    ids=["stride", "dilation", "taps", "float64", "side"],
)
def test_everything_else_takes_the_general_kernels(options):
    forward, backward = plans((1, 8, 40, 300), **options)
    assert {name.split("_")[0] for name in names(forward) + names(backward)} == {"gather"}


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("form", ["pixel", "image"])
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("stride", [1, 2])
def test_only_what_is_asked_for_is_computed(needs, form, channels, stride):
    """No launch may write a gradient that was not asked for."""
    shape = (1, channels, 16, 16)
    _, backward = plans(shape, kernel_size=(3, 3), stride=(stride, stride), form=form, needs=needs)
    assert len(backward) == 1
    constants, kernel = backward[0].constants, names(backward)[0]
    if kernel == "fused_bwd_kernel":
        flags = ("WITH_INPUT", "WITH_SPATIAL", "WITH_CHANNEL")
        assert tuple(constants[flag] for flag in flags) == needs
    if kernel == "tile_bwd_filters_kernel":
        assert not constants["WITH_CHANNEL"]


def test_grid_passes_65535_blocks_on_one_axis():
    """One-dimensional grids: no axis with the 65,535 limit of CUDA's second and third is used."""
    forward, backward = plans((70_000, 3, 64, 64), kernel_size=(3, 3))
    assert forward[0].programs == 70_000 * 16
    assert all(65_535 < launch.programs <= INT32_MAX for launch in backward)
    general, _ = plans((70_000, 3, 64, 64), kernel_size=(3, 3), dilation=(2, 2))
    assert 65_535 < general[0].programs <= INT32_MAX


def test_every_pixel_has_a_program():
    forward, _ = plans((2, 3, 41, 301), kernel_size=(3, 3))
    constants = forward[0].constants
    tiles = -(-41 // constants["ROWS"]) * -(-301 // constants["BLOCK_W"])
    assert forward[0].programs == 2 * tiles


def test_tensors_beyond_32_bit_offsets_take_the_general_kernels():
    window = Window((3, 3))
    image = torch.empty((1, 1, 64, 512), device="meta")
    far = torch.empty_strided((1, 1, 64, 512), (0, 0, 512, 2**24), device="meta")
    assert is_fast(window, [image, image, image, None])
    assert not is_fast(window, [image, far, image, None])


def test_wrapping_padding_counts_the_whole_image():
    """Circular padding reads from one side of the image to the other: their distance must fit 32
    bits."""
    tall = torch.empty_strided((1, 1, 3000, 8), (0, 0, 10**6, 1), device="meta")
    assert is_fast(Window((3, 3)), [tall])
    assert not is_fast(Window((3, 3), padding_mode="circular"), [tall])
