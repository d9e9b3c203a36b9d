"""Compile-only: the launches of the banded products compile for every target that takes them, and
nothing spills. Needs no GPU.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

from kpnops._decoupled_filter import launch_band, route
from tests.helpers_compile import compile_launch
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


BF16, F16 = torch.bfloat16, torch.float16
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# One for each row of the launch tables: what is unrolled, how many rows of taps a program holds,
# one, two or four blocks of taps in the window.
KERNELS = ((2, 3), (3, 3), (5, 5), (7, 7), (11, 11), (17, 17), (4, 17), (17, 2))


def launches(kernel_size, channels, dtype, **options):
    """Launches of the banded products of a call, forward and backward."""
    forward, backward = plans(
        (2, channels, 64, 512), dtype=dtype, kernel_size=kernel_size, **options
    )
    found = [item for item in forward + backward if "band" in item.kernel.__name__]
    assert found
    return found


def check(items, target):
    spilled = []
    for item in items:
        compiled = compile_launch(item, target)
        if compiled.spilled_bytes:
            spilled.append(f"{item.kernel.__name__} {item.constants}: {compiled}")
    assert not spilled, "\n".join(spilled)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_all_kernels(target):
    check(launches((3, 3), 64, BF16), target)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pixel", "none"])
@pytest.mark.parametrize("softmax", [False, True], ids=["", "softmax"])
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_size(target, kernel_size, softmax, form):
    check(launches(kernel_size, 64, BF16, softmax=softmax, form=form), target)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [16, 32])
@pytest.mark.parametrize("softmax", [False, True], ids=["", "softmax"])
@pytest.mark.parametrize("kernel_size", KERNELS[1:4], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_few_channels(target, kernel_size, softmax, channels):
    check(launches(kernel_size, channels, BF16, softmax=softmax), target)


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", ["replicate", "reflect", "circular"])
@pytest.mark.parametrize("kernel_size", KERNELS[1:4], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_every_padding(target, kernel_size, padding_mode):
    check(launches(kernel_size, 64, BF16, padding_mode=padding_mode), target)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pixel", "none"])
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_float16(target, kernel_size, form):
    check(launches(kernel_size, 64, F16, form=form), target)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_gains_in_float32(target, kernel_size):
    from kpnops._decoupled_filter.call import Call, Gradients
    from kpnops._decoupled_filter.geometry import Window
    from kpnops._decoupled_filter.triton_backend import plan_backward, plan_forward

    def meta(channels, dtype):
        return torch.empty(2, channels, 64, 512, dtype=dtype, device="meta")

    window = Window(kernel_size)
    tensors = (meta(64, BF16), meta(window.taps, BF16), meta(64, torch.float32))
    call, output = Call(*tensors, window, "mul"), meta(64, torch.float32)
    grads = Gradients(*(torch.empty_like(tensor) for tensor in tensors))
    items = plan_forward(call, output).launches + plan_backward(call, output, grads).launches
    check([item for item in items if "band" in item.kernel.__name__], target)


@pytest.mark.parametrize("architecture", ["gfx1030", "gfx1100", "gfx1201"])
def test_gpus_where_the_tiles_spill_take_the_other_kernels(monkeypatch, architecture):
    monkeypatch.setattr(launch_band, "architecture", lambda device: architecture)
    forward, backward = plans((2, 64, 64, 512), dtype=BF16, kernel_size=(3, 3))
    assert not any("band" in item.kernel.__name__ for item in forward + backward)


@pytest.mark.parametrize(
    ("architecture", "in_loop"), [("sm_80", True), ("sm_89", True), ("", False)]
)
def test_older_gpus_walk_the_rows_of_taps_in_a_loop(monkeypatch, architecture, in_loop):
    """Unrolled, two terms of each factor spill there."""
    monkeypatch.setattr(launch_band, "architecture", lambda device: architecture)
    forward, gradient = (
        next(item for item in launches((3, 3), 64, BF16) if item.constants.get("TRANSPOSED") == t)
        for t in (False, True)
    )
    assert forward.constants["AHEAD"] > 0
    assert (gradient.constants["AHEAD"] == 0) == in_loop
    assert (gradient.max_registers is not None) == in_loop
