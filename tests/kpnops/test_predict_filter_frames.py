"""The fused head over the frames of a burst: one softmax over all of them, and their sum."""

import itertools

import pytest
import torch
from torch import Tensor

import kpnops
from tests.head_cases import HEAD_GRADIENTS, HeadCase, HeadOperands, check_head, run_operator
from tests.helpers import COMPILED_ROUTES, INTERPRETED, LAYOUTS, PADDING_MODES, arrange

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
DTYPES = [F32] if INTERPRETED else [F64, F32]


def burst(**options) -> HeadCase:
    small = {"size": (2, 3), "kernel_size": (2, 3)} if INTERPRETED else {"size": (4, 5)}
    return HeadCase(**({"normalize": "softmax", "frames": 3} | small | options))


CASES = {
    "three frames": burst(batch=2),
    "one frame": burst(frames=1),
    "no softmax": burst(normalize=None),
    "no bias": burst(bias=False),
    "gains": burst(batch=2, channel_filter="pixel"),
    "gains, one for the batch": burst(batch=2, channel_filter="pixel", channel_batch=1),
    "gains, added": burst(channel_filter="pixel", combine="add"),
    "gains, added, no softmax": burst(channel_filter="pixel", combine="add", normalize=None),
    "one channel": burst(channels=1, frames=2),
    "many channels": burst(channels=17, frames=2, size=(2, 3)),
    "even, dilated": burst(kernel_size=(2, 4), dilation=(2, 1)),
    "one pixel": burst(size=(1, 1)),
    "replicate": burst(padding_mode="replicate"),
    "reflect": burst(padding_mode="reflect", kernel_size=(2, 3), frames=2),
    "circular": burst(padding_mode="circular", channel_filter="pixel"),
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


@pytest.mark.parametrize("dtypes", [(BF16,) * 5, (BF16, F32, F32, F32, BF16)], ids=str)
@pytest.mark.parametrize("channel_batch", [1, 2])
def test_dtypes(channel_batch: int, dtypes: tuple[torch.dtype, ...], device: str) -> None:
    # The gradient of a gain is a sum over the frames, and over the batch: not one in 16 bits.
    case = burst(batch=2, channel_filter="pixel", channel_batch=channel_batch, dtypes=dtypes)
    check_head(kpnops.predict_filter, case, case.operands(device), case.cotangent(device))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts(layout: str, device: str) -> None:
    case = burst(batch=2, channel_filter="pixel", frames=2).with_dtype(DTYPES[0])
    operands = case.operands(device)
    features, image, channel = (
        arrange(tensor, layout)
        for tensor in (operands.features, operands.input, operands.channel_filter)
    )
    operands = operands._replace(features=features, input=image, channel_filter=channel)
    check_head(kpnops.predict_filter, case, operands, case.cotangent(device))


@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize("channel_filter", ["none", "pixel"])
def test_one_frame_is_an_image(channel_filter: str, normalize: str | None, device: str) -> None:
    case = burst(frames=1, channel_filter=channel_filter, normalize=normalize).with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    actual = run_operator(kpnops.predict_filter, case, operands, cotangent)
    alone = operands._replace(input=operands.input[:, 0])
    expected = run_operator(kpnops.predict_filter, case, alone, cotangent)
    expected["grad_input"] = expected["grad_input"][:, None]
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def tap_by_tap(operands: HeadOperands, case: HeadCase) -> Tensor:
    """All taps of all frames in one list, as one dot product for each pixel."""
    features, weight, bias, image, _ = operands
    logits = torch.einsum("kf,bfyx->bkyx", weight, features) + bias[:, None, None]
    taps = logits.softmax(1)
    (Kh, Kw), (H, W) = case.kernel_size, case.size
    total = torch.zeros_like(image[:, 0])
    for k, (n, i, j) in enumerate(itertools.product(range(image.shape[1]), range(Kh), range(Kw))):
        for y, x in itertools.product(range(H), range(W)):
            row, column = y + i - (Kh - 1) // 2, x + j - (Kw - 1) // 2
            if 0 <= row < H and 0 <= column < W:
                total[:, :, y, x] += taps[:, k, None, y, x] * image[:, n, :, row, column]
    return total


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_frames_are_more_taps(device: str) -> None:
    case = burst(batch=2, kernel_size=(2, 3))
    operands = case.operands(device)
    actual = kpnops.predict_filter(*operands, **case.options)
    torch.testing.assert_close(actual, tap_by_tap(operands, case))  # float64


def test_equal_frames_without_softmax_are_one_with_the_sum_of_the_weights(device: str) -> None:
    case = burst(frames=2, normalize=None).with_dtype(F32)
    features, weight, bias, image, _ = case.operands(device)
    image = image[:, :1].expand(-1, 2, -1, -1, -1)  # equal and in the same memory
    actual = kpnops.predict_filter(features, weight, bias, image, **case.options)
    taps = case.plain.taps
    summed = HeadOperands(
        features, weight[:taps] + weight[taps:], bias[:taps] + bias[taps:], image[:, 0], None
    )
    exact = [None if tensor is None else tensor.double() for tensor in summed]
    expected = kpnops.predict_filter(*exact, **case.options)
    terms = [None if tensor is None else tensor.abs() for tensor in exact]
    size = kpnops.predict_filter(*terms, **case.options).amax()
    # Sums of some dozens of terms in float32.
    rounding = 64 * torch.finfo(F32).eps * float(size)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_a_frame_whose_taps_are_minus_infinity_has_no_part(mode: str, device: str) -> None:
    case = burst(frames=2, padding_mode=mode, size=(4, 5))
    operands = case.operands(device)
    taps = case.plain.taps
    operands.bias[taps:] = -torch.inf
    cotangent = case.cotangent(device)
    actual = run_operator(kpnops.predict_filter, case, operands, cotangent)
    features, weight, bias, image, _ = operands
    alone = HeadOperands(features, weight[:taps], bias[:taps], image[:, :1], None)
    expected = run_operator(kpnops.predict_filter, case, alone, cotangent)
    for name in ["output", *HEAD_GRADIENTS[:4]]:
        value = actual[name]
        if name in ("grad_weight", "grad_bias"):
            value, rest = value.split(taps)
            assert not rest.any()
        if name == "grad_input":
            assert not value[:, 1].any()
            value = value[:, :1]
        torch.testing.assert_close(value, expected[name])  # float64
