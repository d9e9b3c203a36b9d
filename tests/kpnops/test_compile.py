"""Compile-only: what the launch tables can ask for compiles for every target, and nothing spills.

Needs no GPU. On sm_90 every launch configuration is built; elsewhere one of each kernel and dtype
here, and all of them in the slow tests.
"""

import itertools
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

from kpnops._decoupled_filter import launch_band, route
from tests.helpers_compile import TARGETS, compile_launch
from tests.helpers_plans import plans

pytestmark = pytest.mark.skipif(
    route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
)


@pytest.fixture(autouse=True)
def _plans_for_the_target(request, monkeypatch):
    """Plans on meta tensors know no GPU; those for some differ."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and "target" in parameters.params:
        target = parameters.params["target"]
        monkeypatch.setattr(launch_band, "architecture", lambda device: target)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KERNELS = ((1, 1), (3, 3), (5, 5), (7, 7))  # one for each row of the launch tables
WIDTHS = (40, 100, 512)  # one for each width class of the launch tables
FORMS = (("pixel", "mul"), ("image", "mul"), ("none", "mul"), ("image", "add"), ("pixel", "add"))
MIX = ("mix", "mul")
PADDINGS = ("zeros", "replicate", "reflect", "circular")


def launches(kernel_size, channels, width, form, dtype, **options):
    channel_filter, combine = form
    shape = (2, channels, 64, width)
    forward, backward = plans(
        shape, form=channel_filter, combine=combine, dtype=dtype, kernel_size=kernel_size, **options
    )
    return forward + backward


def unique(items):
    """Launches that differ in what is compiled."""
    return list({(item.kernel, tuple(item.constants.items())): item for item in items}.values())


def table(dtype, forms, kernels=KERNELS, widths=WIDTHS, **options):
    """Every row of the launch tables for a dtype, with the given forms of channel filter."""
    items = []
    for form, channels, width in itertools.product(forms, (3, 32), widths):
        for kernel_size in kernels:
            items += launches(kernel_size, channels, width, form, dtype, **options)
    for form, channels, kernel_size in itertools.product(forms, (1, 2, 3, 32), ((2, 2), (9, 9))):
        items += launches(kernel_size, channels, 512, form, dtype, dilation=(2, 2), **options)
    return unique(items)


def one_of_each_kernel(dtype, **options):
    """One launch for each kernel, at 5x5 taps where they are unrolled."""
    items = table(dtype, FORMS[:2], kernels=((5, 5),), widths=(512,), **options)
    return list({item.kernel: item for item in items}.values())


def softmax_of_each_kernel(dtype, kernel_size=(3, 3)):
    """One launch for each kernel with the softmax inside, if it can have one; of the tile's
    forward, which is also the gradient of the input, both."""
    items = []
    for channels, form in ((3, FORMS[0]), (32, FORMS[0]), (32, FORMS[1])):
        items += launches(kernel_size, channels, 512, form, dtype, softmax=True)
    items += launches(kernel_size, 3, 512, FORMS[1], dtype, softmax=True, dilation=(2, 2))
    items += launches(kernel_size, 3, 512, MIX, dtype, softmax=True)
    items = [item for item in items if item.constants.get("SOFTMAX", True)]
    return list({(item.kernel, item.constants.get("TRANSPOSED")): item for item in items}.values())


def check(items, target):
    spilled = []
    for item in items:
        compiled = compile_launch(item, target)
        if compiled.spilled_bytes:
            spilled.append(f"{item.kernel.__name__} {item.constants}: {compiled}")
    assert not spilled, "\n".join(spilled)


def test_all_kernels_are_compiled():
    def names(items):
        return {item.kernel.__name__.strip("_") for item in items}

    plain = {
        "tile_fwd_kernel",
        "tile_bwd_filters_kernel",
        "tile_bwd_channel_kernel",
        "fused_bwd_kernel",
        "gather_fwd_kernel",
        "gather_bwd_input_kernel",
        "gather_bwd_spatial_kernel",
        "gather_bwd_channel_kernel",
    }
    others = {
        "softmax_statistics_kernel",
        "mix_fwd_kernel",
        "mix_bwd_filtered_kernel",
        "mix_bwd_matrix_kernel",
    }
    assert names(one_of_each_kernel(torch.float32)) == plain
    assert names(softmax_of_each_kernel(torch.float32)) == plain | others


@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launch_table_on_sm_90(dtype, kernel_size):
    widths = WIDTHS if dtype == torch.float32 else WIDTHS[2:]
    check(table(dtype, FORMS[:1], kernels=(kernel_size,), widths=widths), "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_launch_table_on_sm_90(dtype, kernel_size):
    check(table(dtype, FORMS[:2], kernels=(kernel_size,)), "sm_90")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942", "gfx1100"])
def test_each_kernel_and_dtype_on_other_targets(target, dtype):
    check(one_of_each_kernel(dtype), target)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_softmax_of_each_kernel(target):
    check(softmax_of_each_kernel(torch.float32), target)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", KERNELS[1:], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", list(TARGETS))
def test_softmax_of_each_kernel_and_dtype(target, dtype, kernel_size):
    check(softmax_of_each_kernel(dtype, kernel_size), target)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", list(TARGETS))
def test_softmax_of_every_form_on_every_target(target, dtype, form):
    check(table(dtype, [form], widths=(512,), softmax=True), target)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*FORMS, MIX], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", list(TARGETS))
def test_every_form_on_every_target(target, dtype, form):
    check(table(dtype, [form], widths=(512,)), target)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS[:2])
def test_every_width_on_sm_90(width, dtype, form):
    check(table(dtype, [form], widths=(width,)), "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("softmax", [False, True], ids=["", "softmax"])
@pytest.mark.parametrize("padding_mode", PADDINGS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", list(TARGETS))
def test_every_padding_on_every_target(target, dtype, padding_mode, softmax):
    options = {"padding_mode": padding_mode, "softmax": softmax}
    items = []
    for kernel_size, channels in itertools.product(KERNELS[1:], (3, 32)):
        items += launches(kernel_size, channels, 512, FORMS[0], dtype, **options)
    check(unique(items), target)


@pytest.mark.slow
@pytest.mark.parametrize("softmax", [False, True], ids=["", "softmax"])
@pytest.mark.parametrize("kernel_size", [(1, 12), (12, 1), (4, 7), (12, 4), (4, 12)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rectangles_on_sm_90(dtype, kernel_size, softmax):
    check(table(dtype, FORMS, kernels=(kernel_size,), widths=(512,), softmax=softmax), "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", KERNELS[1:], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("target", list(TARGETS))
def test_odd_widths_on_every_target(target, dtype, kernel_size):
    """Two pixels of a thread, one load each: a test of its own for every column."""
    items = []
    for form, channels in itertools.product(FORMS[:3], (3, 32)):
        items += launches(kernel_size, channels, 501, form, dtype)
    check(unique(items), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", list(TARGETS))
def test_a_rectangle_of_many_taps_on_every_target(target):
    """40 taps in tiles of narrow images, once 8 bytes on sm_100."""
    check(launches((5, 8), 64, 16, ("image", "add"), torch.float32, groups=8), target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel_size", "padding_mode", "softmax", "needs"),
    [
        ((5, 5), "replicate", False, (False, True, True)),
        ((5, 6), "reflect", False, (False, True, False)),
        ((6, 6), "zeros", False, (False, True, True)),
        ((6, 6), "reflect", False, (False, True, True)),
        ((6, 6), "reflect", True, (False, True, False)),
    ],
)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx1100"])
def test_taps_and_sums_between_the_squares(target, kernel_size, padding_mode, softmax, needs):
    """Gradients of the filters just below the limits of taps, with strides made even."""
    options = {"padding_mode": padding_mode, "softmax": softmax, "needs": needs}
    check(launches(kernel_size, 32, 500, FORMS[0], torch.float32, **options), target)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel_size", "channels"), [((5, 5), 4), ((4, 7), 3)], ids=str)
@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_all_gradients_in_float64_on_amd(target, kernel_size, channels):
    items = launches(kernel_size, channels, 501, FORMS[0], torch.float64, softmax=True)
    check(items, target)


@pytest.mark.slow
@pytest.mark.parametrize("softmax", [False, True], ids=["", "softmax"])
@pytest.mark.parametrize("width", [500, 501, 512])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx1100"])
def test_other_paddings_where_programs_share_out_the_channels(target, width, softmax):
    """More arguments are numbers then, and wait in registers."""
    for padding_mode in ("replicate", "reflect"):
        options = {"kernel_size": (5, 5), "padding_mode": padding_mode, "softmax": softmax}
        forward, _ = plans((1, 64, 256, width), **options)
        assert forward[0].arguments["chunks"] > 1
        check(forward, target)


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", PADDINGS[1:])
@pytest.mark.parametrize(("height", "chunks"), [(128, 2), (256, 1)])
@pytest.mark.parametrize("target", list(TARGETS))
def test_49_taps_under_other_paddings(target, height, chunks, padding_mode):
    """A mask for each of 49 loads filled the registers beside the taps, whether programs share out
    the channels or not."""
    forward, _ = plans((1, 64, height, 512), kernel_size=(7, 7), padding_mode=padding_mode)
    assert forward[0].arguments["chunks"] == chunks
    check(forward, target)


def test_the_check_notices_a_spill():
    """16 taps of 4 rows of 2x2 do not fit into 24 registers of a thread."""
    item = launches((2, 2), 32, 512, ("none", "mul"), torch.float32)[0]
    assert compile_launch(replace(item, max_registers=24), "sm_90").spilled_bytes > 0


class StandInDriver:
    """As much of a GPU's driver as Triton asks for before it launches."""

    def get_current_target(self):
        return TARGETS["sm_90"]

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


@pytest.mark.parametrize(
    ("channels", "form", "softmax", "stride"),
    [
        (3, "pixel", False, 1),
        (3, "pixel", True, 1),
        (8, "pixel", True, 1),
        (3, "image", True, 1),
        (8, "image", False, 1),
        (3, "pixel", False, 2),
        (8, "image", True, 2),
        (3, "mix", True, 2),
    ],
)
def test_launches_bind_to_the_kernels_as_on_a_gpu(monkeypatch, channels, form, softmax, stride):
    """Argument names, tuples of strides and options pass through Triton's own launcher."""
    from triton.runtime import driver

    forward, backward = plans(
        (1, channels, 20, 40),
        form=form,
        softmax=softmax,
        kernel_size=(3, 3),
        stride=(stride, stride),
    )
    monkeypatch.setattr(driver, "_active", StandInDriver())
    for item in forward + backward:
        options = item.options(nvidia=True)
        compiled = item.kernel.warmup(
            grid=(item.programs,), **item.arguments, **item.constants, **options
        )
        assert compiled.metadata.num_warps == item.num_warps
