"""Compile-only: what the launch tables can ask for compiles for every target, and nothing spills.

Needs no GPU. On sm_90 every launch configuration is built; elsewhere one of each kernel and dtype
here, and all of them in the slow tests.
"""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

from kpnops._decoupled_filter import route
from tests.helpers_compile import TARGETS, compile_launch
from tests.helpers_plans import plans

pytestmark = pytest.mark.skipif(
    route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KERNELS = ((1, 1), (3, 3), (5, 5), (7, 7))  # one for each row of the launch tables
WIDTHS = (40, 100, 512)  # one for each width class of the launch tables
FORMS = (("pixel", "mul"), ("image", "mul"), ("none", "mul"), ("image", "add"), ("pixel", "add"))
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


def table(dtype, forms, kernels=KERNELS, widths=WIDTHS):
    """Every row of the launch tables for a dtype, with the given forms of channel filter."""
    items = []
    for form, channels, width in itertools.product(forms, (3, 32), widths):
        for kernel_size in kernels:
            items += launches(kernel_size, channels, width, form, dtype)
    for form, channels, kernel_size in itertools.product(forms, (1, 2, 3, 32), ((2, 2), (9, 9))):
        items += launches(kernel_size, channels, 512, form, dtype, dilation=(2, 2))
    return unique(items)


def one_of_each_kernel(dtype):
    """One launch for each kernel, at 5x5 taps where they are unrolled."""
    items = table(dtype, FORMS[:2], kernels=((5, 5),), widths=(512,))
    return list({item.kernel: item for item in items}.values())


def check(items, target):
    spilled = []
    for item in items:
        compiled = compile_launch(item, target)
        if compiled.spilled_bytes:
            spilled.append(f"{item.kernel.__name__} {item.constants}: {compiled}")
    assert not spilled, "\n".join(spilled)


def test_all_kernels_are_compiled():
    kernels = {item.kernel.__name__.strip("_") for item in one_of_each_kernel(torch.float32)}
    assert kernels == {
        "tile_fwd_kernel",
        "tile_bwd_filters_kernel",
        "tile_bwd_channel_kernel",
        "fused_bwd_kernel",
        "gather_fwd_kernel",
        "gather_bwd_input_kernel",
        "gather_bwd_spatial_kernel",
        "gather_bwd_channel_kernel",
    }


@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launch_table_on_sm_90(dtype, kernel_size):
    forms = FORMS[:2] if dtype == torch.float32 else FORMS[:1]
    check(table(dtype, forms, kernels=(kernel_size,)), "sm_90")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942", "gfx1100"])
def test_each_kernel_and_dtype_on_other_targets(target, dtype):
    check(one_of_each_kernel(dtype), target)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
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
@pytest.mark.parametrize("padding_mode", PADDINGS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", list(TARGETS))
def test_every_padding_on_every_target(target, dtype, padding_mode):
    items = []
    for kernel_size, channels in itertools.product(KERNELS[1:], (3, 32)):
        items += launches(kernel_size, channels, 512, FORMS[0], dtype, padding_mode=padding_mode)
    check(unique(items), target)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [(1, 12), (12, 1), (4, 7), (12, 4), (4, 12)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rectangles_on_sm_90(dtype, kernel_size):
    check(table(dtype, FORMS, kernels=(kernel_size,), widths=(512,)), "sm_90")


def test_the_check_notices_a_spill():
    """144 float64 taps unrolled can not stay in registers."""
    item = launches((5, 5), 32, 512, ("pixel", "mul"), torch.float64)[0]
    item.constants.update(KH=12, KW=12)
    assert compile_launch(item, "sm_90").spilled_bytes > 0


class StandInDriver:
    """As much of a GPU's driver as Triton asks for before it launches."""

    def get_current_target(self):
        return TARGETS["sm_90"]

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


@pytest.mark.parametrize("stride", [1, 2], ids=["fast", "general"])
@pytest.mark.parametrize("form", ["pixel", "image"])
@pytest.mark.parametrize("channels", [3, 8])
def test_launches_bind_to_the_kernels_as_on_a_gpu(monkeypatch, channels, form, stride):
    """Argument names, tuples of strides and options pass through Triton's own launcher."""
    from triton.runtime import driver

    forward, backward = plans(
        (1, channels, 20, 40), form=form, kernel_size=(3, 3), stride=(stride, stride)
    )
    monkeypatch.setattr(driver, "_active", StandInDriver())
    for item in forward + backward:
        options = item.options(nvidia=True)
        compiled = item.kernel.warmup(
            grid=(item.programs,), **item.arguments, **item.constants, **options
        )
        assert compiled.metadata.num_warps == item.num_warps
