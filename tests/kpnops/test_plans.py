"""Which kernels a call launches, on how large a grid: pure functions of shapes, tested on meta
tensors."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels to plan")

from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.triton_backend import is_fast
from tests.helpers_compile import compile_launch
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
    assert [name for name in names(backward) if name != "gather_bwd_input_kernel"] == [
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


GENERAL = {"kernel_size": (3, 3), "dilation": (2, 2)}


def test_softmax_takes_statistics_where_not_all_taps_are_at_hand():
    forward, backward = plans((1, 8, 16, 16), softmax=True, **GENERAL)
    assert names(forward) == ["gather_fwd_kernel"]
    assert forward[0].constants["SOFTMAX"]
    assert names(backward) == [
        "gather_fwd_kernel",
        "softmax_statistics_kernel",
        "gather_bwd_input_kernel",
        "gather_bwd_spatial_kernel",
    ]
    statistics = backward[1].arguments["statistics_ptr"]
    assert statistics.shape == (1, 1, 3, 16, 16)
    assert all(item.arguments["statistics_ptr"] is statistics for item in backward[2:])
    assert backward[1].constants["WITH_DELTA"]


@pytest.mark.parametrize(
    ("channels", "needs", "expected", "with_delta"),
    [
        (3, (True, True, True), ["fused_bwd_kernel"], True),
        (3, (True, False, False), ["fused_bwd_kernel"], False),
        (64, (True, True, True), ["tile_fwd_kernel", "tile_bwd_filters_kernel"], False),
        (64, (True, False, False), ["tile_fwd_kernel"], False),
        (64, (False, True, True), ["tile_bwd_filters_kernel"], None),  # all taps are at hand
    ],
)
def test_softmax_on_the_fast_kernels(channels, needs, expected, with_delta):
    shape, options = (1, channels, 40, 300), {"kernel_size": (3, 3), "softmax": True}
    forward, backward = plans(shape, needs=needs, **options)
    assert names(forward) == ["tile_fwd_kernel"]
    made = [] if with_delta is None else ["softmax_statistics_kernel"]
    assert names(backward) == made + expected
    if made:
        assert backward[0].constants["WITH_DELTA"] == with_delta


@pytest.mark.parametrize(
    ("form", "combine", "needs", "expected"),
    [
        ("pixel", "mul", (True, False, False), [("softmax_statistics_kernel", False)]),
        ("pixel", "add", (True, False, False), [("softmax_statistics_kernel", False)]),
        ("pixel", "mul", (False, True, False), [("softmax_statistics_kernel", True)]),
        ("none", "mul", (False, True, False), [("softmax_statistics_kernel", True)]),
        ("pixel", "mul", (False, False, True), []),  # all taps are at hand
        ("image", "mul", (False, False, True), [("softmax_statistics_kernel", False)]),
        ("image", "add", (False, False, True), []),  # S has no part in it
    ],
)
def test_statistics_are_made_where_they_are_needed_only(form, combine, needs, expected):
    """The sum over the taps of P dP costs as much as a forward; dS alone needs it."""
    _, backward = plans(
        (1, 8, 16, 16), form=form, combine=combine, needs=needs, softmax=True, **GENERAL
    )
    if form == "image":
        _, fast = plans(
            (1, 8, 16, 16),
            form=form,
            combine=combine,
            needs=needs,
            softmax=True,
            kernel_size=(3, 3),
        )
        assert len(fast) == len(backward)
    made = [item for item in backward if "WITH_DELTA" in item.constants]
    assert [(names([item])[0], item.constants["WITH_DELTA"]) for item in made] == expected
    assert len(backward) == 1 + len(made)


def test_no_statistics_without_softmax():
    _, backward = plans((1, 8, 16, 16), **GENERAL)
    assert "softmax_statistics_kernel" not in names(backward)
    assert not any(item.constants["SOFTMAX"] for item in backward)


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ((True, True, True), ["matrix", "filtered", "rest"]),
        ((False, False, True), ["matrix"]),
        ((True, False, False), ["filtered", "rest"]),
        ((False, True, False), ["filtered", "rest"]),
    ],
)
@pytest.mark.parametrize("options", [{"kernel_size": (3, 3)}, GENERAL], ids=["fast", "general"])
def test_mixing_goes_back_through_the_filtered_image(needs, expected, options):
    """The matrix's gradient and that of the filtered image, then a plain backward from the latter.

    Each only when asked for.
    """
    shape = (2, 3, 16, 16)
    forward, backward = plans(shape, form="mix", output_channels=5, needs=needs, **options)
    assert names(forward) == ["mix_fwd_kernel"]
    _, plain = plans(shape, form="none", needs=needs, **options)
    known = {"matrix": ["mix_bwd_matrix_kernel"], "filtered": ["mix_bwd_filtered_kernel"]}
    assert names(backward) == [
        kernel for name in expected for kernel in known.get(name, names(plain))
    ]
    if "filtered" in expected:
        start = expected.index("filtered")
        filtered = backward[start].arguments["grad_filtered_ptr"]
        assert filtered.shape == shape
        assert filtered.dtype == torch.float32
        assert all(item.arguments["grad_ptr"] is filtered for item in backward[start + 1 :])


def test_matrix_that_images_share_is_summed_over_them():
    _, (matrix, *_) = plans((2, 3, 16, 16), form="shared mix", kernel_size=(3, 3))
    _, (own, *_) = plans((2, 3, 16, 16), form="mix", kernel_size=(3, 3))
    assert matrix.constants["SUM_BATCH"]
    assert not own.constants["SUM_BATCH"]
    assert own.programs == 2 * matrix.programs


def test_a_matrix_in_float64_keeps_all_sums_in_float64():
    """The call that is left without the matrix knows narrower dtypes only."""
    import triton.language as tl

    from kpnops._decoupled_filter.call import Call, Gradients
    from kpnops._decoupled_filter.triton_backend import plan_backward

    image, taps = torch.empty(1, 2, 8, 8, device="meta"), torch.empty(1, 9, 8, 8, device="meta")
    matrix = torch.empty(1, 2, 2, 8, 8, dtype=torch.float64, device="meta")
    call = Call(image, taps, matrix, Window((3, 3)), "mul")
    plan = plan_backward(call, image.double(), Gradients(image, taps, None))
    assert all(item.constants["ACC"] == tl.float64 for item in plan.launches)


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "reflect", "circular"])
def test_scale_factor_takes_the_general_kernels(padding_mode):
    forward, backward = plans(
        (1, 3, 8, 8), form="none", kernel_size=(3, 3), scale=2, padding_mode=padding_mode
    )
    assert names(forward) == ["gather_fwd_kernel"]
    rectangles = backward[:-1]
    assert names(rectangles) == len(rectangles) * ["gather_bwd_input_kernel"]
    assert len(rectangles) == (1 if padding_mode in ("zeros", "circular") else 9)
    # an interior pixel is read by 2 x 2 outputs through each tap; one at a border by some more
    most = {"zeros": 2, "circular": 2, "replicate": 2 * 2, "reflect": 2 * 3}[padding_mode]
    assert {item.arguments["readers_h"] for item in rectangles} == {2, most}
    inside = [item for item in rectangles if item.arguments["readers_h"] == 2]
    assert any(item.arguments["readers_w"] == 2 for item in inside)


def test_grid_passes_65535_blocks_on_one_axis():
    """One-dimensional grids: no axis with the 65,535 limit of CUDA's second and third is used."""
    forward, backward = plans((70_000, 3, 64, 64), kernel_size=(3, 3))
    assert forward[0].programs == 70_000 * 4
    assert all(65_535 < launch.programs <= INT32_MAX for launch in backward)
    for options in ({"form": "pixel"}, {"form": "mix"}, {"form": "image"}):
        launches = plans((70_000, 3, 64, 64), softmax=True, **GENERAL, **options)
        sizes = [item.programs for item in launches[0] + launches[1]]
        assert len(sizes) > 4
        assert all(65_535 < programs <= INT32_MAX for programs in sizes)


def test_every_pixel_has_a_program():
    forward, _ = plans((2, 3, 41, 301), kernel_size=(3, 3))
    constants = forward[0].constants
    tiles = -(-41 // constants["BLOCK_H"]) * -(-301 // constants["BLOCK_W"])
    assert forward[0].programs == 2 * tiles


@pytest.mark.parametrize(
    ("shape", "programs"),
    [
        ((1, 64, 512, 512), 32 * 8 * 4),  # 256 tiles of 16 x 64: each has 16 of the channels
        ((32, 256, 8, 8), 32 * 32),  # one tile an image
        ((32, 256, 7, 7), 32 * 32),
        ((1, 37, 16, 16), 37),  # what divides 37
        ((4, 64, 1080, 1920), 4 * 68 * 30),  # enough tiles: no program has part of the channels
        ((1, 3, 8, 8), 1),  # a program has 4 channels, or all
    ],
)
def test_few_tiles_share_out_the_channels(shape, programs):
    """A program's chunks of channels are equal, and cover all of them."""
    forward, backward = plans(shape, kernel_size=(3, 3))
    assert forward[0].programs == programs
    for item in forward + backward:
        if "chunks" in item.arguments:
            assert item.arguments["chunks"] * item.arguments["channels"] == shape[1]


@pytest.mark.parametrize("kernel_size", [(1, 1), (1, 12), (12, 1), (3, 3), (5, 5), (7, 7)], ids=str)
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 30, 40, 64, 1000])
def test_a_tile_is_its_threads_and_as_high_as_offsets_allow(kernel_size, width):
    """``is_fast`` counts on at most 16 rows and 256 columns of a tile."""
    forward, backward = plans((1, 8, 64, width), kernel_size=kernel_size)
    for item in forward + backward:
        constants = item.constants
        if "ROWS" not in constants:
            continue
        pixels = constants["BLOCK_H"] * constants["BLOCK_W"]
        share = constants["ROWS"] * constants["PIXELS"]
        assert constants["BLOCK_H"] % constants["ROWS"] == 0
        assert pixels % (share * 32 * item.num_warps) == 0
        assert constants["BLOCK_H"] <= 16
        assert constants["BLOCK_W"] <= 256


@pytest.mark.parametrize(
    ("width", "columns", "pixels", "joined", "even"),
    [
        (512, 1, 2, True, False),
        (500, 1, 2, True, True),
        (501, 1, 2, False, False),
        (512, 2, 1, False, False),
    ],
)
def test_two_pixels_are_loaded_at_once_where_rows_begin_at_even_offsets(
    width, columns, pixels, joined, even
):
    """Of any tensor; and Triton knows by itself of strides that are multiples of 16 only.

    A thread has two pixels of a row wherever they are neighbours in memory.
    """
    from kpnops._decoupled_filter.call import Call
    from kpnops._decoupled_filter.triton_backend import plan_forward

    image = torch.empty((1, 8, 64, width * columns), device="meta")[..., ::columns]
    taps = torch.empty((1, 9, 64, width), device="meta")
    output = torch.empty((1, 8, 64, width), device="meta")
    call = Call(image, taps, None, Window((3, 3)), "mul")
    (item,) = plan_forward(call, output).launches
    assert item.constants["PIXELS"] == pixels
    assert item.constants["JOINED"] == joined
    assert item.constants["EVEN_STRIDES"] == even
    assert item.constants["SAME_STRIDES"] == (columns == 1)


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


@pytest.mark.parametrize(
    ("shape", "options", "wide"),
    [
        ((1, 3, 1080, 1920), {}, False),
        ((1, 1, 1, 2**30 - 3), {}, False),
        ((1, 1, 1, 2**30), {}, True),  # a reflected column passes through twice its number
        ((1, 1, 2**31 + 8, 1), {}, True),
        ((1, 1, 4, 4), {"dilation": (1, 2**29)}, False),
        ((1, 1, 4, 4), {"dilation": (2**30, 1)}, True),
        ((1, 1, 1, 2**29 - 3), {"scale": 2}, False),
        ((1, 1, 1, 2**29), {"scale": 2}, True),
    ],
)
def test_rows_and_columns_are_64_bit_where_32_do_not_hold_them(shape, options, wide):
    """Every position that a kernel forms from a row or column must fit its type."""
    import triton.language as tl

    options = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (2, 2)} | options
    forward, backward = plans(shape, form="none", softmax=True, **options)
    expected = tl.int64 if wide else tl.int32
    for item in forward + backward:
        assert item.constants["INDEX"] == expected
        assert item.programs <= INT32_MAX


def test_positions_beyond_32_bits_are_passed_whole():
    """Rows and columns are arguments of the launch as Python numbers, which Triton passes in 64
    bits."""
    forward, _ = plans((1, 1, 4, 2**33), form="none", kernel_size=(3, 3), dilation=(2, 2))
    assert forward[0].arguments["W"] == 2**33
    assert forward[0].programs * forward[0].constants["BLOCK_P"] == 4 * 2**33


@pytest.mark.parametrize("form", ["pixel", "mix"])
def test_kernels_with_64_bit_rows_and_columns_compile_without_spills(form):
    forward, backward = plans((1, 8, 4, 2**33), form=form, softmax=True, **GENERAL)
    for item in forward + backward:
        assert item.arguments["WO"] == 2**33
        compiled = compile_launch(item, "sm_90")
        assert compiled.spilled_bytes == 0, f"{item.kernel.__name__}: {compiled}"
