"""The fused head: output and all gradients against the oracle, for the whole table of options."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import kpnops
from kpnops._decoupled_filter import cpu_split, route
from kpnops._predict_filter import cpu_head
from tests.head_cases import HeadCase, HeadOperands, check_head, run_operator
from tests.helpers import (
    COMPILED_ROUTES,
    INTERPRETED,
    LAYOUTS,
    PADDING_MODES,
    arrange,
    has_promised_format,
)

pytestmark = [
    pytest.mark.usefixtures("poisoned_allocations"),
    # The interpreter computes with NumPy, which warns of what these tests do on purpose.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero):RuntimeWarning"),
]

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [F32] if INTERPRETED else [F64, F32]
DTYPE = DTYPES[0]


def head(**options) -> HeadCase:
    small = {"size": (3, 4), "kernel_size": (2, 3)} if INTERPRETED else {}
    return HeadCase(**({"normalize": "softmax"} | small | options))


CASES = {
    "no channel filter": head(),
    "no softmax": head(normalize=None),
    "no bias": head(bias=False),
    "no bias, no softmax": head(bias=False, normalize=None, channel_filter="pixel"),
    "gains per pixel": head(channel_filter="pixel", batch=2),
    "gains per pixel, one for the batch": head(channel_filter="pixel", batch=2, channel_batch=1),
    "filter per image": head(channel_filter="image", batch=2),
    "filter per image, one for the batch": head(
        channel_filter="image", batch=2, channel_batch=1, channels=5
    ),
    "filter per image, no softmax": head(channel_filter="image", normalize=None),
    "add per pixel": head(channel_filter="pixel", combine="add"),
    "add per pixel, no softmax": head(channel_filter="pixel", combine="add", normalize=None),
    "add per image": head(channel_filter="image", combine="add", channels=5),
    "three groups": head(channels=6, groups=3),
    "a group for each channel": head(channels=4, groups=4, channel_filter="image"),
    "two groups, no softmax": head(channels=4, groups=2, normalize=None, channel_filter="pixel"),
    "one tap": head(kernel_size=(1, 1)),
    "one feature": head(features=1),
    "many features": head(features=65, size=(2, 3)),
    "even": head(kernel_size=(2, 4)),
    "tall": head(kernel_size=(5, 2), channels=2),
    "wide": head(kernel_size=(1, 7), normalize=None),
    "many taps": head(kernel_size=(7, 8), size=(2, 3), channels=1),
    "dilation": head(dilation=(2, 3)),
    "dilation beyond the image": head(dilation=(1, 50), kernel_size=(2, 3)),
    "one pixel": head(size=(1, 1)),
    "one column": head(size=(6, 1), channel_filter="image"),
    "one row": head(size=(1, 6), channel_filter="pixel"),
    "replicate": head(padding_mode="replicate", kernel_size=(3, 2)),
    "replicate, dilated, no softmax": head(
        padding_mode="replicate", dilation=(2, 3), normalize=None, size=(3, 4)
    ),
    "reflect": head(padding_mode="reflect", channel_filter="pixel"),
    "reflect, even, add": head(
        padding_mode="reflect", kernel_size=(4, 2), channel_filter="pixel", combine="add"
    ),
    "circular": head(padding_mode="circular", channels=4, groups=2),
    "circular, wrapped several times": head(
        padding_mode="circular", size=(1, 2), kernel_size=(3, 6), normalize=None
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, dtype: torch.dtype, device: str) -> None:
    case = CASES[name].with_dtype(dtype)
    check_head(kpnops.predict_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_reference(name: str, device: str) -> None:
    case = CASES[name]
    operands, cotangent = case.operands(device), case.cotangent(device)
    check_head(kpnops.reference.predict_filter, case, operands, cotangent)


def test_a_dilation_beyond_all_memory_is_one_beyond_the_image(device: str) -> None:
    case = CASES["dilation beyond the image"].with_dtype(DTYPE)
    far = replace(case, dilation=(1, 2**30))
    operands, cotangent = case.operands(device), case.cotangent(device)
    actual = run_operator(kpnops.predict_filter, far, operands, cotangent)
    expected = run_operator(kpnops.predict_filter, case, operands, cotangent)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("channel_filter", ["none", "image", "pixel"])
@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_forms_and_paddings(
    combine: str, normalize: str | None, channel_filter: str, mode: str, device: str
) -> None:
    case = head(
        channels=4,
        groups=2,
        channel_filter=channel_filter,
        padding_mode=mode,
        normalize=normalize,
        combine=combine,
        size=(4, 5),
    ).with_dtype(F32)
    check_head(kpnops.predict_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("channel_filter", ["pixel"] if INTERPRETED else ["image", "pixel"])
@pytest.mark.parametrize(
    "dtypes",
    [
        (F64, F64, F64, F64, F64),
        (F16, F16, F16, F16, F16),
        (BF16, BF16, BF16, BF16, BF16),
        (BF16, F32, F32, F32, BF16),  # an autocast network with its own weights and radiance
        (BF16, BF16, BF16, F32, F32),
        (F16, BF16, F32, F16, F16),
        (F32, F32, F32, BF16, F64),
        (F32, F64, F16, F32, F32),
    ],
    ids=lambda dtypes: "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
)
def test_dtypes(dtypes: tuple[torch.dtype, ...], channel_filter: str, device: str) -> None:
    kernel_size = (1, 3) if INTERPRETED else (3, 3)
    case = head(kernel_size=kernel_size, channel_filter=channel_filter, dtypes=dtypes)
    check_head(kpnops.predict_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("channel_filter", ["image", "pixel"])
def test_layouts(channel_filter: str, layout: str, device: str) -> None:
    case = head(batch=2, channels=6, groups=3, size=(2, 3), channel_filter=channel_filter)
    case = case.with_dtype(DTYPE)
    operands = HeadOperands(
        *(
            arrange(tensor, layout) if tensor.dim() > 2 else strided(tensor, layout)
            for tensor in case.operands(device)
        )
    )
    cotangent = arrange(case.cotangent(device), layout)
    actual = check_head(kpnops.predict_filter, case, operands, cotangent)
    assert has_promised_format(actual["output"], operands.input)
    for name, source in operands._asdict().items():
        assert has_promised_format(actual["grad_" + name], source), name


def strided(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The weight or the bias in another layout, as far as it can have it."""
    if layout == "expanded":
        return tensor[..., :1].expand(tensor.shape)
    if layout == "sliced":
        return torch.stack([tensor, tensor], dim=-1)[..., 0]
    return tensor.mT.contiguous().mT if tensor.dim() == 2 else tensor


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("layouts", list(product(LAYOUTS[:2], LAYOUTS[:2], LAYOUTS[:2])), ids=str)
def test_formats_follow_each_tensor(layouts: tuple[str, ...], device: str) -> None:
    case = head(batch=2, size=(3, 4), channel_filter="pixel").with_dtype(DTYPE)
    operands = case.operands(device)
    features, image, channel = operands.features, operands.input, operands.channel_filter
    features, image, channel = map(arrange, (features, image, channel), layouts)
    operands = operands._replace(features=features, input=image, channel_filter=channel)
    actual = run_operator(kpnops.predict_filter, case, operands, case.cotangent(device))
    assert has_promised_format(actual["output"], operands.input)
    for name, source in operands._asdict().items():
        assert has_promised_format(actual["grad_" + name], source), name


SUBSETS = [subset for subset in product([False, True], repeat=5) if any(subset)]


@pytest.mark.parametrize("needs_grad", SUBSETS[::5] if INTERPRETED else SUBSETS, ids=str)
@pytest.mark.parametrize("channel_filter", ["pixel"] if INTERPRETED else ["image", "pixel"])
def test_some_gradients(channel_filter: str, needs_grad: tuple[bool, ...], device: str) -> None:
    case = head(channel_filter=channel_filter, size=(2, 3), kernel_size=(1, 3)).with_dtype(DTYPE)
    operands, cotangent = case.operands(device), case.cotangent(device)
    check_head(kpnops.predict_filter, case, operands, cotangent, needs_grad)


@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize("frames", [None, 2])
def test_no_images(frames: int | None, normalize: str | None, device: str) -> None:
    case = head(
        batch=0, channel_batch=1, channel_filter="pixel", frames=frames, normalize=normalize
    )
    # The gradients of weights that no image has used are zero.
    check_head(kpnops.predict_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("device", ["cpu"])
@pytest.mark.parametrize("chunk", [1, 3000])
@pytest.mark.parametrize(
    "mode", ["zeros", pytest.param("reflect", marks=pytest.mark.slow), "circular"]
)
@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize("channel_filter", ["none", "pixel", "one gain", "image"])
def test_strips_and_chunks(
    channel_filter: str,
    frames: int | None,
    mode: str,
    chunk: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if channel_filter == "image" and frames is not None:
        pytest.skip("frames have no filter for each image")
    monkeypatch.setattr(cpu_split, "WORKSPACE_BYTES", 4_000)
    monkeypatch.setattr(cpu_head, "CHUNK_BYTES", chunk)
    shared = channel_filter == "one gain"
    case = head(
        batch=2,
        size=(9, 4),
        kernel_size=(3, 2),
        padding_mode=mode,
        frames=frames,
        channel_filter="pixel" if shared else channel_filter,
        channel_batch=1 if shared else None,
        dtypes=(F32, F32, F32, F32, BF16),
    )
    check_head(kpnops.predict_filter, case, case.operands(device), case.cotangent(device))


def test_two_runs_give_the_same_bits(device: str) -> None:
    case = head(channels=5, padding_mode="circular", batch=2).with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    first = run_operator(kpnops.predict_filter, case, operands, cotangent)
    second = run_operator(kpnops.predict_filter, case, operands, cotangent)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_options_have_short_forms(device: str) -> None:
    case = head(kernel_size=(2, 2), dilation=(2, 2)).with_dtype(F32)
    features, weight, bias, image, _ = case.operands(device)
    expected = kpnops.predict_filter(features, weight, bias, image, **case.options)
    options = {"kernel_size": 2, "dilation": [2, 2], "normalize": "softmax"}
    as_convolution = weight[..., None, None]
    assert torch.equal(
        kpnops.predict_filter(features, as_convolution, bias, image, **options), expected
    )
    leaf = as_convolution.detach().requires_grad_()
    kpnops.predict_filter(features, leaf, bias, image, **options).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.shape == leaf.shape


def test_autocast_casts_nothing(device: str) -> None:
    case = head(channel_filter="pixel", dtypes=(BF16, F32, F32, F32, BF16))
    operands, cotangent = case.operands(device), case.cotangent(device)
    expected = run_operator(kpnops.predict_filter, case, operands, cotangent)
    with torch.autocast(device, torch.bfloat16):
        actual = run_operator(kpnops.predict_filter, case, operands, cotangent)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_logits_of_halves_are_not_rounded(device: str) -> None:
    """The error is below that of the same network with stored logits, which are rounded."""
    case = head(features=64, size=(9, 12), kernel_size=(5, 5)).with_dtype(BF16)
    features, weight, bias, image, _ = operands = case.operands(device)
    exact = [tensor.double() for tensor in operands[:4]]
    expected = kpnops.reference.predict_filter(*exact, **case.options)
    image = image.float()  # so that the result is not rounded either
    fused = kpnops.predict_filter(features, weight, bias, image, **case.options)
    logits = F.conv2d(features, weight[..., None, None], bias)
    stored = kpnops.decoupled_filter(image, logits, normalize="softmax")
    fused_error = (fused - expected).norm()
    assert fused_error < (stored - expected).norm() / 100


@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_precision_of_16_bit_operands(precision: str, device: str) -> None:
    """They are exact in every precision of the products."""
    case = head(channel_filter="pixel").with_dtype(BF16)

    def operator(*operands, **options):
        return kpnops.predict_filter(*operands, **options, precision=precision)

    check_head(operator, case, case.operands(device), case.cotangent(device))


# ---------------------------------------------------------------------------------- large, infinite


@pytest.mark.parametrize("scale", [20.0, 1e4])
@pytest.mark.parametrize("frames", [None, 2])
def test_large_logits(frames: int | None, scale: float, device: str) -> None:
    # At a scale of 1e4 one tap has all the weight. Nothing overflows.
    case = head(frames=frames, features=2).with_dtype(DTYPES[-1])
    operands = case.operands(device)
    operands = operands._replace(weight=operands.weight * scale)
    actual = check_head(kpnops.predict_filter, case, operands, case.cotangent(device))
    assert all(bool(tensor.isfinite().all()) for tensor in actual.values())


INFINITE = {
    # rows of the bias, and what is put there
    "-inf in one tap": ([1], [-math.inf]),
    "-inf in all taps but one": ([0, 1, 2, 3, 5], [-math.inf] * 5),
    "-inf in all taps": ([0, 1, 2, 3, 4, 5], [-math.inf] * 6),
    "inf": ([2], [math.inf]),
    "inf and -inf": ([0, 3], [math.inf, -math.inf]),
    "NaN": ([4], [math.nan]),
}


@pytest.mark.parametrize("kind", INFINITE)
def test_infinite_logits(kind: str, device: str) -> None:
    case = head(kernel_size=(2, 3), size=(3, 4), channel_filter="pixel").with_dtype(DTYPE)
    operands = case.operands(device)
    rows, values = INFINITE[kind]
    operands.bias[rows] = torch.tensor(values, dtype=DTYPE, device=device)
    actual = check_head(kpnops.predict_filter, case, operands, case.cotangent(device))
    finite = kind in ("-inf in one tap", "-inf in all taps but one")
    assert bool(actual["output"].isfinite().all()) == finite


def test_infinite_features_reach_their_pixel_alone(device: str) -> None:
    case = head(size=(3, 5), channel_filter="pixel").with_dtype(DTYPE)
    operands = case.operands(device)
    operands.features[0, 2, 1, 3] = math.nan
    actual = kpnops.predict_filter(*operands, **case.options)
    expected = torch.zeros(case.size, dtype=torch.bool, device=device)
    expected[1, 3] = True
    assert torch.equal(actual.isnan().all(1)[0], expected)
    assert torch.equal(actual.isnan().any(1)[0], expected)


@pytest.mark.parametrize("scale", [1, 1000])  # at 1000 most probabilities are zero
def test_kernels_save_the_log_sum_exp(scale: int, device: str) -> None:
    if not route.may_have_kernels(torch.device(device)):
        pytest.skip("the CPU path saves filters instead")
    case = head(channels=4, groups=2, batch=2, features=3).with_dtype(DTYPE)
    operands = case.operands(device)
    operands = operands._replace(weight=operands.weight * scale)
    kernel_size, dilation = list(case.kernel_size), list(case.dilation)
    options = (kernel_size, dilation, "zeros", "softmax", "mul", "ieee")
    actual = torch.ops.kpnops.predict_filter(*operands, *options)[1]
    features, weight, bias = (tensor.double() for tensor in operands[:3])
    logits = F.conv2d(features, weight[..., None, None], bias)
    expected = logits.unflatten(1, (2, -1)).logsumexp(2)
    # A few roundings of the logits and of the exponential's argument.
    rounding = 16 * torch.finfo(DTYPE).eps * float(logits.abs().max() + 1)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=rounding)
    plain = torch.ops.kpnops.predict_filter(
        *operands, kernel_size, dilation, "zeros", None, "mul", "ieee"
    )
    assert plain[1].numel() == 0


def test_a_delta_in_the_bias_is_identity(device: str) -> None:
    case = replace(head(kernel_size=(3, 3), size=(3, 4)), normalize=None).with_dtype(F32)
    features, weight, bias, image, _ = case.operands(device)
    bias.zero_()[4] = 1
    actual = kpnops.predict_filter(features, 0 * weight, bias, image, **case.options)
    assert torch.equal(actual, image)  # nothing rounds
