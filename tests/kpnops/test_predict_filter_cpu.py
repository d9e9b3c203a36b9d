"""How the CPU path lays out and cuts its work: never visible in a result."""

import math
from dataclasses import replace

import pytest
import torch

import kpnops
from kpnops._decoupled_filter import cpu_gradient_rows, cpu_split
from kpnops._decoupled_filter.cpu_split import Split
from kpnops._decoupled_filter.geometry import Window
from kpnops._predict_filter import cpu_head
from tests.head_cases import HeadCase, check_head, run_operator

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("positions", [1, 15, 16, 17, 32, 4096, 67 * 256, 100_003])
def test_taps_lie_an_odd_number_of_cache_lines_apart(positions: int, itemsize: int) -> None:
    line = cpu_head.LINE_BYTES // itemsize
    apart = cpu_head.apart(positions, itemsize)
    assert apart % line == 0
    assert apart // line % 2 == 1
    assert positions <= apart < positions + 2 * line


@pytest.mark.parametrize("batch", [1, 1000])
@pytest.mark.parametrize("size", [(1, 1), (40, 1), (3, 5), (64, 64)])
def test_what_lies_between_the_taps_counts_as_memory(
    size: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of a few pixels would otherwise take many times the memory of their filters."""
    taps, most = 9, 2**15
    monkeypatch.setattr(cpu_head, "CHUNK_BYTES", most)
    monkeypatch.setattr(cpu_head, "KEPT_BYTES", 0)
    sizes = []
    init = cpu_head.Head.__init__

    def recorded(head, *arguments, **options):
        init(head, *arguments, **options)
        sizes.append(head._memory[0].nbytes)

    monkeypatch.setattr(cpu_head.Head, "__init__", recorded)
    features, image = torch.rand(batch, 2, *size), torch.rand(batch, 1, *size)
    kpnops.predict_filter(features, torch.rand(taps, 2), None, image, kernel_size=3)
    row = taps * cpu_head.apart(size[1], 4) * 4
    assert sizes
    assert all(size <= max(most, row) for size in sizes)


@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
@pytest.mark.parametrize("width", [1, 7, 16, 17])
def test_what_lies_between_the_taps_never_shows(
    width: int, channel_filter: str, normalize: str | None
) -> None:
    """That memory is full of NaN here, in rows that end before, at and behind a cache line."""
    case = HeadCase(
        batch=2,
        channels=4,
        groups=2,
        size=(3, width),
        kernel_size=(3, 2),
        channel_filter=channel_filter,
        normalize=normalize,
    ).with_dtype(F32)
    check_head(kpnops.predict_filter, case, case.operands("cpu"), case.cotangent("cpu"))


@pytest.mark.parametrize("batch_strips", [False, True])
@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
def test_filters_that_are_kept_are_those_made_again(
    channel_filter: str, normalize: str | None, batch_strips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, but for rounding where the gradients go by pieces and make them again."""
    case = HeadCase(
        batch=2,
        channels=4,
        groups=2,
        size=(5, 7),
        kernel_size=(3, 2),
        channel_filter=channel_filter,
        normalize=normalize,
    ).with_dtype(F32)
    operands, cotangent = case.operands("cpu"), case.cotangent("cpu")
    if batch_strips:
        monkeypatch.setattr(cpu_head, "CHUNK_BYTES", 2**9)
    results = []
    for kept in (2**20, 0):
        monkeypatch.setattr(cpu_head, "KEPT_BYTES", kept)
        options = ([3, 2], [1, 1], "zeros", normalize, "mul", "ieee")
        saved = torch.ops.kpnops.predict_filter(*operands, *options)[1]
        assert (saved.numel() > 0) == (kept > 0)
        results.append(run_operator(kpnops.predict_filter, case, operands, cotangent))
    first, second = results
    assert first.keys() == second.keys()
    for name, value in first.items():
        if batch_strips:  # a product of another shape may be added up in another order
            torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(value, second[name]), name


WINDOWS = {
    "plain": Window((3, 3)),
    "even": Window((2, 4)),
    "dilated": Window((3, 2), dilation=(2, 3)),
    "strided": Window((2, 3), stride=(2, 3)),
    "strided, dilated": Window((3, 3), stride=(3, 2), dilation=(1, 2)),
    "repeated": Window((3, 2), dilation=(1, 2), scale=3),
    "one tap": Window((1, 1)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_tap_views_are_slices(name: str) -> None:
    """Each tap reads the slice that begins at its place, however much more was padded."""
    window, (rows, columns) = WINDOWS[name], (4, 5)
    call = Split(
        input=torch.rand(2, 3, rows, columns),
        spatial=torch.rand(2, 1, window.taps, rows, columns),
        channel=None,
        window=window,
        form="none",
        combine="mul",
        softmax=False,
        dtype=F32,
    )
    sizes = [
        (outputs - 1) * window.stride[axis] + cpu_split.reach(window, axis) + 1
        for axis, outputs in enumerate((rows, columns))
    ]
    padded = torch.rand(2, 1, 3, sizes[0] + 7, sizes[1] + 2)
    views = cpu_split.tap_views(padded, call)
    assert len(views) == window.taps
    (Kh, Kw), (dy, dx), scale = window.kernel_size, window.dilation, window.scale
    for i in range(Kh):
        for j in range(Kw):
            top, left = i * dy * scale, j * dx * scale
            expected = padded[..., top :: window.stride[0], left :: window.stride[1]]
            assert torch.equal(views[i * Kw + j], expected[..., :rows, :columns])
            assert views[i * Kw + j].data_ptr() == padded[..., top, left].data_ptr()


def sums_over_channels(blocks: int, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_gradient_rows, "ELEMENTS_AT_ONCE", blocks)
    monkeypatch.setattr(cpu_gradient_rows, "ELEMENTS_OF_LANES", lanes)


CUTS = {"element by element": (1, 1), "a few rows": (150, 1), "all channels": (2**18, 2**18)}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("trained", [True, False])
def test_blocks_of_the_gradient_of_the_logits(
    trained: bool, combine: str, channel_filter: str, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel filter that is not ``trained`` takes another way where it is one for each image."""
    sums_over_channels(*CUTS[cut], monkeypatch)
    case = HeadCase(
        batch=2,
        channels=6,
        size=(5, 4),
        kernel_size=(3, 2),
        channel_filter=channel_filter,
        normalize="softmax",
        combine=combine,
    ).with_dtype(F32)
    needs = (True, True, True, True, trained and channel_filter != "none")
    check_head(kpnops.predict_filter, case, case.operands("cpu"), case.cotangent("cpu"), needs)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_blocks_of_the_gradient_of_the_spatial_filter(
    dtype: torch.dtype, weighted: bool, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of the decoupled filter, whose gradient may have another dtype than its sums."""
    generator = torch.Generator().manual_seed(0)
    exact = [
        # small integers, whose sums of products no dtype rounds
        torch.randint(-1, 2, shape, generator=generator).double()
        for shape in ((2, 6, 5, 4), (2, 2 * 6, 5, 4), (2, 6, 6), (2, 6, 5, 4))
    ]

    def gradient(values: list[torch.Tensor]) -> torch.Tensor:
        image, spatial, channel, cotangent = values
        spatial = spatial.clone().requires_grad_()
        output = kpnops.decoupled_filter(
            image, spatial, channel if weighted else None, kernel_size=(3, 2)
        )
        return torch.autograd.grad(output, spatial, cotangent.to(output.dtype))[0]

    expected = gradient(exact)
    sums_over_channels(*CUTS[cut], monkeypatch)
    assert torch.equal(gradient([value.to(dtype) for value in exact]).double(), expected)


def test_the_number_of_threads_changes_no_bit_of_the_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks are larger where there are more threads, and the last one is smaller than the rest."""
    sums_over_channels(200, 400, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    image, spatial, cotangent = (
        torch.rand(shape, generator=generator)
        for shape in ((1, 6, 23, 7), (1, 9, 23, 7), (1, 6, 23, 7))
    )
    spatial.requires_grad_()
    output = kpnops.decoupled_filter(image, spatial)
    gradients = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        gradients.append(torch.autograd.grad(output, spatial, cotangent, retain_graph=True)[0])
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_chunks_of_any_height_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    case = HeadCase(
        channels=3, size=(11, 9), kernel_size=(3, 3), normalize="softmax", features=5
    ).with_dtype(F64)
    operands, cotangent = case.operands("cpu"), case.cotangent("cpu")
    whole = run_operator(kpnops.predict_filter, case, operands, cotangent)
    for rows in (1, 2, 4, 10):
        most = 9 * 8 * cpu_head.apart(rows * 9, 8)
        monkeypatch.setattr(cpu_head, "CHUNK_BYTES", most)
        cut = run_operator(kpnops.predict_filter, case, operands, cotangent)
        torch.testing.assert_close(cut, whole)  # sums over chunks come in another order


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_cotangent_that_is_not_finite_reaches_the_features_of_its_pixel_alone(
    value: float,
) -> None:
    case = HeadCase(channels=3, size=(4, 5), kernel_size=(3, 3), normalize="softmax")
    case = replace(case.with_dtype(F32), bias=False)
    operands, cotangent = case.operands("cpu"), case.cotangent("cpu")
    cotangent[0, 1, 2, 3] = value
    features = operands.features.clone().requires_grad_()
    output = kpnops.predict_filter(features, *operands[1:], **case.options)
    (gradient,) = torch.autograd.grad(output, features, cotangent)
    touched = ~cotangent.isfinite().all(1)
    assert torch.equal(~gradient.isfinite().all(1), touched)
