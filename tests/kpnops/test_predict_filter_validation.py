"""Wrong arguments of the fused head: an exception that names the argument, what was expected and
what came."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import kpnops
from tests.head_cases import HeadCase

CASE = HeadCase(batch=2, channels=4, size=(5, 6), groups=2, channel_filter="pixel")
CASE = CASE.with_dtype(torch.float32)
FRAMES = HeadCase(batch=2, channels=4, size=(5, 6), frames=3, channel_filter="pixel")
FRAMES = FRAMES.with_dtype(torch.float32)


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


# What to change in a good call; the exception; what the message must contain, in any order.
Wrong = dict[str, tuple[dict[str, Any], type[Exception], list[str]]]
WRONG: Wrong = {
    "features of rank 3": ({"features": tensor(5, 5, 6)}, ValueError, ["features", "4", "5, 5, 6"]),
    "batch of the features": (
        {"features": tensor(3, 5, 5, 6)},
        ValueError,
        ["features", "2, F, 5, 6", "3, 5, 5, 6"],
    ),
    "size of the features": (
        {"features": tensor(2, 5, 6, 5)},
        ValueError,
        ["features", "2, F, 5, 6", "2, 5, 6, 5"],
    ),
    "no features": ({"features": tensor(2, 0, 5, 6)}, ValueError, ["features", "2, 0, 5, 6"]),
    "weight of rank 3": (
        {"weight": tensor(18, 5, 1)},
        ValueError,
        ["weight", "2", "4", "18, 5, 1"],
    ),
    "weight of other features": ({"weight": tensor(18, 4)}, ValueError, ["weight", "5", "18, 4"]),
    "weight of a 3x3 convolution": (
        {"weight": tensor(18, 5, 3, 3)},
        ValueError,
        ["weight", "1, 1", "18, 5, 3, 3"],
    ),
    "rows of the weight": ({"weight": tensor(17, 5)}, ValueError, ["weight", "G * 9", "17"]),
    "groups do not divide the channels": (
        {"weight": tensor(27, 5), "bias": None},
        ValueError,
        ["weight", "4 channels", "27"],
    ),
    "bias of rank 2": ({"bias": tensor(18, 1)}, ValueError, ["bias", "18", "18, 1"]),
    "length of the bias": ({"bias": tensor(9)}, ValueError, ["bias", "18", "9"]),
    "input of rank 3": ({"input": tensor(4, 5, 6)}, ValueError, ["input", "5", "4, 5, 6"]),
    "input of rank 6": ({"input": tensor(2, 1, 1, 4, 5, 6)}, ValueError, ["input", "2, 1, 1, 4"]),
    "input without rows": ({"input": tensor(2, 4, 0, 6)}, ValueError, ["input", "2, 4, 0, 6"]),
    "channel filter of rank 2": (
        {"channel_filter": tensor(4, 9)},
        ValueError,
        ["channel_filter", "3", "4", "4, 9"],
    ),
    "mixing matrix": (
        {"channel_filter": tensor(2, 4, 4, 5, 6)},
        ValueError,
        ["channel_filter", "5", "einsum"],
    ),
    "batch of the channel filter": (
        {"channel_filter": tensor(3, 4, 5, 6)},
        ValueError,
        ["channel_filter", "2 or 1", "3, 4, 5"],
    ),
    "taps of the channel filter": (
        {"channel_filter": tensor(2, 4, 8)},
        ValueError,
        ["channel_filter", "9", "2, 4, 8"],
    ),
    "size of the channel filter": (
        {"channel_filter": tensor(2, 4, 5, 5)},
        ValueError,
        ["channel_filter", "6", "2, 4, 5, 5"],
    ),
    "kernel size without value": ({"kernel_size": None}, TypeError, ["kernel_size", "None"]),
    "kernel size of zero": ({"kernel_size": 0}, ValueError, ["kernel_size", "0"]),
    "kernel size of three numbers": ({"kernel_size": (3, 3, 3)}, ValueError, ["kernel_size", "3"]),
    "kernel size of a float": ({"kernel_size": 3.0}, TypeError, ["kernel_size", "3.0"]),
    "dilation of zero": ({"dilation": (1, 0)}, ValueError, ["dilation", "0"]),
    "padding mode": ({"padding_mode": "same"}, ValueError, ["padding_mode", "replicate", "same"]),
    "combine": ({"combine": "max"}, ValueError, ["combine", "add", "max"]),
    "normalize": ({"normalize": "sum"}, ValueError, ["normalize", "softmax", "sum"]),
    "precision": ({"precision": "fp32"}, ValueError, ["precision", "tf32x3", "fp32"]),
    "no precision": ({"precision": None}, ValueError, ["precision", "ieee", "None"]),
    "precision of a number": ({"precision": 32}, TypeError, ["precision", "32"]),
    "reflect beyond the image": (
        {"padding_mode": "reflect", "dilation": (5, 1)},
        ValueError,
        ["reflect", "5 rows"],
    ),
}
WRONG |= {
    f"{name} of integers": (
        {name: tensor(*shape, dtype=torch.int32)},
        TypeError,
        [name, "float32", "int32"],
    )
    for name, shape in CASE.shapes._asdict().items()
}
WRONG |= {
    f"{name} as an array": ({name: np.ones((2, 2))}, TypeError, [name, "Tensor", "ndarray"])
    for name in CASE.shapes._asdict()
}
WRONG |= {
    f"{name} on another device": (
        {name: tensor(*shape).to("meta")},
        ValueError,
        [name, "cpu", "meta"],
    )
    for name, shape in CASE.shapes._asdict().items()
    if name != "input"
}
WRONG_FRAMES: Wrong = {
    "rows of the weight": ({"weight": tensor(18, 5)}, ValueError, ["weight", "3 * 9", "18"]),
    "filter per image": (
        {"channel_filter": tensor(2, 4, 9)},
        ValueError,
        ["channel_filter", "frames", "2, 4, 9"],
    ),
    "gains for each frame": (
        {"channel_filter": tensor(2, 3, 4, 5, 6)},
        ValueError,
        ["channel_filter", "2, 3, 4, 5, 6"],
    ),
    "no frames": ({"input": tensor(2, 0, 4, 5, 6)}, ValueError, ["input", "N", "2, 0, 4, 5, 6"]),
    "batch of the features": (
        {"features": tensor(6, 5, 5, 6)},
        ValueError,
        ["features", "2, F, 5, 6", "6, 5, 5, 6"],
    ),
}


@pytest.mark.parametrize("operator", [kpnops.predict_filter, kpnops.reference.predict_filter])
@pytest.mark.parametrize(
    ("case", "change", "error", "words"),
    [
        *(pytest.param(CASE, *wrong, id=name) for name, wrong in WRONG.items()),
        *(pytest.param(FRAMES, *wrong, id=f"frames: {n}") for n, wrong in WRONG_FRAMES.items()),
    ],
)
def test_wrong_arguments(
    case: HeadCase, change: dict, error: type[Exception], words: list[str], operator: Any
) -> None:
    arguments = case.operands()._asdict() | case.options
    operator(**arguments)  # the rest is good
    with pytest.raises(error) as caught:
        operator(**(arguments | change))
    message = str(caught.value)
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), (word, message)


def test_options_are_named(device: str) -> None:
    operands = CASE.operands(device)
    with pytest.raises(TypeError):
        kpnops.predict_filter(*operands, 3)
    with pytest.raises(TypeError, match="kernel_size"):
        kpnops.predict_filter(*operands)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter
def test_infinity_is_no_error(device: str) -> None:
    features, weight, bias, image, _ = CASE.operands(device)
    output = kpnops.predict_filter(features * math.inf, weight, bias, image, kernel_size=3)
    assert not output.isfinite().any()
