"""The kernels of the fused head: how the backward is cut, and what compilers make of them."""

from itertools import product

import pytest
import torch

import kpnops

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

from kpnops._decoupled_filter import route
from kpnops._decoupled_filter.geometry import Window, source_index
from kpnops._predict_filter import launch_common, launch_patch, triton_backend
from kpnops._predict_filter.call import Call
from kpnops._predict_filter.launch_head import head_forward
from kpnops._predict_filter.patches import WORKSPACE_BYTES, patches
from tests.head_cases import HeadCase, check_head
from tests.helpers_compile import TARGETS, compile_launch

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
compiled_only = pytest.mark.skipif(
    route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
)


def meta_call(
    kernel_size=(5, 5),
    size=(512, 512),
    *,
    batch=1,
    channels=3,
    features=64,
    groups=1,
    frames=None,
    form="none",
    combine="mul",
    softmax=True,
    padding_mode="zeros",
    dilation=(1, 1),
    dtype=F32,
    image_dtype=None,
    precision="ieee",
) -> Call:
    """A call without data."""
    taps = kernel_size[0] * kernel_size[1]
    image_dtype = image_dtype or dtype

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    image = (batch, channels, *size) if frames is None else (batch, frames, channels, *size)
    channel = {
        "none": None,
        "image": meta(batch, channels, taps),
        "pixel": meta(batch, channels, *size),
    }[form]
    rows = groups * (frames or 1) * taps
    return Call(
        meta(batch, features, *size),
        meta(rows, features),
        meta(rows),
        meta(*image, dtype=image_dtype),
        channel,
        Window(kernel_size, (1, 1), dilation, padding_mode),
        combine,
        softmax,
        precision,
    )


def launches(call: Call) -> list:
    """Every kernel of the forward and of one patch of the backward."""
    B, C, taps = call.input.shape[0], call.channels, call.weight.shape[0]
    output = torch.empty(call.output_shape, dtype=call.result_dtype, device="meta")
    sums = torch.empty(call.statistics_shape, dtype=call.sum_dtype, device="meta")
    filters = output.new_empty(1, dtype=call.sum_dtype)
    cut = patches(call)
    assert cut is not None
    patch = cut[0]
    made = [
        *head_forward(call, output, sums if call.softmax else None),
        launch_patch.patch_filters(call, patch, sums, filters),
        launch_patch.grad_input(call, patch, output, filters, call.input),
        launch_patch.grad_logits(call, patch, output, filters),
        launch_patch.grad_features(call, patch, filters, call.features),
        launch_patch.grad_weight(call, patch, filters, filters.new_empty(4, taps, 64)),
    ]
    if call.form == "image":
        partial = filters.new_empty(4, B, C, call.window.taps)
        made.append(launch_patch.grad_channel(call, patch, output, filters, partial))
    return made


CUTS = [
    meta_call(size=(7, 9), batch=3),
    meta_call((3, 4), (11, 8), padding_mode="circular"),
    meta_call((4, 3), (8, 11), dilation=(2, 1), padding_mode="replicate"),
    meta_call((2, 5), (9, 9), padding_mode="reflect", frames=2),
    meta_call((2, 2), (9, 9), padding_mode="reflect"),
    meta_call((5, 1), (20, 6), groups=3),
]


@pytest.mark.parametrize("call", CUTS, ids=lambda call: f"{call.window.padding_mode}{call.size}")
@pytest.mark.parametrize("pixels", [70, 150, 10_000])
def test_patches_cover_the_image_once_and_hold_all_readers(call: Call, pixels: int) -> None:
    bytes_of_a_pixel = call.weight.shape[0] * call.sum_dtype.itemsize
    cut = patches(call, workspace=pixels * bytes_of_a_pixel)
    assert cut is not None
    B, (H, W) = call.input.shape[0], call.size
    seen = torch.zeros(B, H, W, dtype=torch.int64)
    for patch in cut:
        seen[patch.images, patch.rows, patch.columns] += 1
        assert patch.pixels <= pixels
        for axis, part in enumerate((patch.rows, patch.columns)):
            size = call.size[axis]
            readers = {y % size for y in range(patch.readers[axis].start, patch.readers[axis].stop)}
            for y, tap in product(range(size), range(call.window.kernel_size[axis])):
                offset = tap * call.window.dilation[axis] - call.window.before[axis]
                source = source_index(y + offset, size, call.window.padding_mode)
                assert y in readers or not part.start <= source < part.stop
    assert (seen == 1).all()


def test_no_patches_where_taps_lie_too_far_apart() -> None:
    assert patches(meta_call((21, 21), (4000, 4000), dilation=(50, 50))) is None


@pytest.mark.parametrize("kernel_size", [(3, 3), (11, 11), (21, 21), (31, 31)])
def test_workspace_is_bounded_whatever_the_size(kernel_size: tuple[int, int]) -> None:
    for size in ((64, 64), (1080, 1920), (2160, 3840), (1, 100_000), (100_000, 2)):
        call = meta_call(kernel_size, size)
        cut = patches(call)
        assert cut is not None
        held = max(patch.readers_size[0] * patch.readers_size[1] for patch in cut)
        assert held * call.weight.shape[0] * 4 <= WORKSPACE_BYTES
        # those around patches are made more than once
        made = sum(patch.readers_size[0] * patch.readers_size[1] for patch in cut)
        assert made < 2 * size[0] * size[1]


@pytest.mark.interpreted
@pytest.mark.skipif(not route.interpreted(), reason="the CPU path has no patches")
@pytest.mark.parametrize(
    ("form", "padding_mode"),
    [("pixel", "zeros"), ("image", "replicate"), ("pixel", "reflect"), ("image", "circular")],
)
def test_many_patches(form: str, padding_mode: str, monkeypatch) -> None:
    case = HeadCase(
        size=(4, 5),
        kernel_size=(2, 3),
        channel_filter=form,
        channels=2,
        features=3,
        padding_mode=padding_mode,
        normalize="softmax",
        dtypes=(F32,) * 5,
    )
    few = 14 * 6 * 4  # pixels, taps, bytes

    def small(call):
        cut = patches(call, workspace=few)
        assert cut is not None
        assert len(cut) > 1
        return cut

    monkeypatch.setattr(triton_backend, "patches", small)
    check_head(kpnops.predict_filter, case, case.operands(), case.cotangent())


SHIPPED = [
    meta_call((5, 5), precision="tf32"),
    meta_call((21, 21), precision="ieee"),
    meta_call((5, 5), dtype=BF16, image_dtype=F32, channels=64),
]
MORE = [
    meta_call((size, size), dtype=dtype, channels=channels, form=form, combine=combine,
              precision=precision)
    for size in (3, 7, 11, 21, 31)
    for dtype, precision in ((F32, "tf32"), (F32, "tf32x3"), (F32, "ieee"), (BF16, "ieee"))
    for channels, form, combine in ((3, "none", "mul"), (1, "pixel", "add"), (64, "image", "mul"))
]  # fmt: skip


def assert_compiles(call: Call, target: str, monkeypatch) -> None:
    monkeypatch.setattr(launch_common, "architecture", lambda device: target)
    if target.startswith("gfx"):  # as a build of PyTorch for AMD plans it
        monkeypatch.setattr(torch.version, "hip", "6.4")
    for launch in launches(call):
        compiled = compile_launch(launch, target)
        assert compiled.spilled_bytes == 0, launch.kernel


@compiled_only
@pytest.mark.parametrize("call", SHIPPED, ids=["5x5 tf32", "21x21 ieee", "5x5 mixed"])
def test_nothing_spills(call: Call, monkeypatch) -> None:
    assert_compiles(call, "sm_90", monkeypatch)


@compiled_only
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "call", MORE, ids=lambda c: f"{c.window.kernel_size[0]} {c.features.dtype} {c.precision} "
    f"{c.channels} {c.form} {c.combine}"
)  # fmt: skip
def test_nothing_spills_anywhere(call: Call, target: str, monkeypatch) -> None:
    assert_compiles(call, target, monkeypatch)


@compiled_only
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "call",
    [
        meta_call((5, 5), features=features, dtype=dtype, precision=precision, padding_mode=padding)
        for features in (16, 128, 288)
        for dtype, precision in ((F32, "tf32"), (F32, "tf32x3"), (F16, "ieee"), (F64, "ieee"))
        for padding in ("zeros", "circular")
    ],
    ids=lambda c: f"{c.features.shape[1]} {c.features.dtype} {c.precision} {c.window.padding_mode}",
)
def test_nothing_spills_with_other_features(call: Call, target: str, monkeypatch) -> None:
    assert_compiles(call, target, monkeypatch)
