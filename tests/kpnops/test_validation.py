"""Wrong input: an exception whose message names the argument, what was expected and what came."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kpnops
from tests.helpers import COMPILED_ROUTES, Case

CASE = Case(batch=2, channels=4, size=(5, 6), groups=2).with_dtype(torch.float32)


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


# What to change in a good call; the exception; what the message must contain, in any order.
WRONG: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "input of rank 3": ({"input": tensor(4, 5, 6)}, ValueError, ["input", "4", "4, 5, 6"]),
    "input of rank 5": ({"input": tensor(2, 4, 5, 6, 1)}, ValueError, ["input", "2, 4, 5, 6, 1"]),
    "spatial filter of rank 3": (
        {"spatial_filter": tensor(18, 5, 6)}, ValueError, ["spatial_filter", "18, 5, 6"],
    ),
    "spatial filter of rank 5": (
        {"spatial_filter": tensor(2, 2, 9, 5, 6)}, ValueError, ["spatial_filter", "2, 2, 9, 5, 6"],
    ),
    "channel filter of rank 2": (
        {"channel_filter": tensor(4, 9)}, ValueError, ["channel_filter", "4, 9"],
    ),
    "channel filter of rank 6": (
        {"channel_filter": tensor(2, 4, 4, 5, 6, 1)}, ValueError, ["channel_filter", "4, 5, 6, 1"],
    ),
    "batch of the spatial filter": (
        {"spatial_filter": tensor(3, 18, 5, 6)}, ValueError, ["spatial_filter", "3, 18, 5, 6", "2"],
    ),
    "spatial filter is not shared by the batch": (
        {"spatial_filter": tensor(1, 18, 5, 6)}, ValueError, ["spatial_filter", "1, 18, 5, 6", "2"],
    ),
    "batch of a per-pixel channel filter": (
        {"channel_filter": tensor(3, 4, 5, 6)}, ValueError, ["channel_filter", "3, 4, 5, 6", "2"],
    ),
    "batch of a per-image channel filter": (
        {"channel_filter": tensor(3, 4, 9)}, ValueError, ["channel_filter", "3, 4, 9", "2"],
    ),
    "channels of the per-pixel channel filter": (
        {"channel_filter": tensor(2, 3, 5, 6)}, ValueError, ["channel_filter", "2, 3, 5, 6", "4"],
    ),
    "one channel is not broadcast": (
        {"channel_filter": tensor(2, 1, 5, 6)}, ValueError, ["channel_filter", "2, 1, 5, 6", "4"],
    ),
    "channels of the per-image channel filter": (
        {"channel_filter": tensor(2, 5, 9)}, ValueError, ["channel_filter", "2, 5, 9", "4"],
    ),
    "taps of the channel filter": (
        {"channel_filter": tensor(2, 4, 8)}, ValueError, ["channel_filter", "2, 4, 8", "9"],
    ),
    "size of the channel filter": (
        {"channel_filter": tensor(2, 4, 5, 5)}, ValueError, ["channel_filter", "2, 4, 5, 5", "6"],
    ),
    "one pixel is not broadcast": (
        {"channel_filter": tensor(2, 4, 1, 1)}, ValueError, ["channel_filter", "2, 4, 1, 1", "5"],
    ),
    "height of the spatial filter": (
        {"spatial_filter": tensor(2, 18, 4, 6)}, ValueError, ["spatial_filter", "2, 18, 4, 6", "5"],
    ),
    "width of the spatial filter": (
        {"spatial_filter": tensor(2, 18, 5, 7)}, ValueError, ["spatial_filter", "2, 18, 5, 7", "6"],
    ),
    "size after the stride": (
        {"stride": 2, "channel_filter": None, "spatial_filter": tensor(2, 18, 4, 3)},
        ValueError,
        ["spatial_filter", "2, 18, 4, 3", "2 or 3"],
    ),
    "groups do not divide the channels": (
        {"spatial_filter": tensor(2, 27, 5, 6)}, ValueError, ["spatial_filter", "27", "4"],
    ),
    "more groups than channels": (
        {"spatial_filter": tensor(2, 72, 5, 6)}, ValueError, ["spatial_filter", "72", "4"],
    ),
    "planes are no multiple of the taps": (
        {"spatial_filter": tensor(2, 19, 5, 6)}, ValueError, ["spatial_filter", "19", "9"],
    ),
    "no planes": (
        {"spatial_filter": tensor(2, 0, 5, 6)}, ValueError, ["spatial_filter", "2, 0, 5, 6"],
    ),
    "kernel size does not fit": (
        {"kernel_size": 5}, ValueError, ["spatial_filter", "kernel_size", "18", "5"],
    ),
    "no kernel size and no square": (
        {"kernel_size": None}, ValueError, ["spatial_filter", "kernel_size", "18"],
    ),
    "kernel size of zero": ({"kernel_size": 0}, ValueError, ["kernel_size", "0"]),
    "negative kernel size": ({"kernel_size": (3, -3)}, ValueError, ["kernel_size", "-3"]),
    "three kernel sizes": ({"kernel_size": (3, 3, 3)}, ValueError, ["kernel_size", "3"]),
    "fractional kernel size": ({"kernel_size": 3.0}, TypeError, ["kernel_size", "float"]),
    "stride of zero": ({"stride": 0}, ValueError, ["stride", "0"]),
    "fractional stride": ({"stride": (1, 1.5)}, TypeError, ["stride", "1.5"]),
    "stride is no number": ({"stride": "1"}, TypeError, ["stride", "'1'"]),
    "stride is a truth value": ({"stride": True}, TypeError, ["stride", "True"]),
    "dilation of zero": ({"dilation": (1, 0)}, ValueError, ["dilation", "0"]),
    "dilation beyond 64 bits": (
        {"dilation": 10**30}, ValueError, ["dilation", "2**31", str(10**30)],
    ),
    "stride beyond 64 bits": ({"stride": (1, 10**30)}, ValueError, ["stride", "2**31"]),
    "no dilation": ({"dilation": None}, TypeError, ["dilation", "None"]),
    "unknown padding mode": (
        {"padding_mode": "symmetric"},
        ValueError,
        ["padding_mode", "symmetric", "zeros", "replicate", "reflect", "circular"],
    ),
    "padding mode is None": ({"padding_mode": None}, ValueError, ["padding_mode", "None"]),
    "unknown combination": ({"combine": "sub"}, ValueError, ["combine", "sub", "mul", "add"]),
    "unknown normalisation": ({"normalize": "l1"}, ValueError, ["normalize", "l1", "softmax"]),
    "normalisation is a truth value": (
        {"normalize": True}, TypeError, ["normalize", "string", "True"],
    ),
    "padding mode is a number": ({"padding_mode": 0}, TypeError, ["padding_mode", "int"]),
    "combination is a list": ({"combine": ["mul"]}, TypeError, ["combine", "list"]),
    "scale factor and a stride": (
        {"scale_factor": 2, "stride": (1, 2)}, ValueError, ["scale_factor", "2", "stride=1"],
    ),
    "filters on the grid of the input": (
        {"scale_factor": 2}, ValueError, ["spatial_filter", "10 rows", "2, 18, 5, 6"],
    ),
    "filters on a grid of another factor": (
        {"scale_factor": 2, "spatial_filter": tensor(2, 18, 10, 18)},
        ValueError,
        ["spatial_filter", "12 columns", "scale_factor 2", "2, 18, 10, 18"],
    ),
    "gains on the grid of the input": (
        {"scale_factor": 2, "spatial_filter": tensor(2, 18, 10, 12)},
        ValueError,
        ["channel_filter", "10, 12", "2, 4, 5, 6"],
    ),
    "neither filter": (
        {"spatial_filter": None, "channel_filter": None},
        ValueError,
        ["spatial_filter", "channel_filter", "3 dimensions"],
    ),
    "gains alone": ({"spatial_filter": None}, ValueError, ["spatial_filter", "3 dimensions"]),
    "mixing matrix alone": (
        {"spatial_filter": None, "channel_filter": tensor(2, 4, 4, 5, 6)},
        ValueError,
        ["spatial_filter", "3 dimensions"],
    ),
    "softmax of nothing": (
        {"spatial_filter": None, "channel_filter": tensor(2, 4, 9), "normalize": "softmax"},
        ValueError,
        ["normalize", "softmax", "spatial_filter", "None"],
    ),
    "channel filter alone, upsampled": (
        {"spatial_filter": None, "channel_filter": tensor(2, 4, 9), "scale_factor": 2},
        ValueError,
        ["scale_factor", "2", "spatial_filter", "None"],
    ),
    "channel filter alone, no square": (
        {"spatial_filter": None, "channel_filter": tensor(2, 4, 6), "kernel_size": None},
        ValueError,
        ["channel_filter", "6 taps", "kernel_size"],
    ),
    "channel filter alone, other taps": (
        {"spatial_filter": None, "channel_filter": tensor(2, 4, 6)},
        ValueError,
        ["channel_filter", "4, 9", "2, 4, 6"],
    ),
    "channel filter alone, reflection beyond the image": (
        {
            "spatial_filter": None,
            "channel_filter": tensor(2, 4, 9),
            "padding_mode": "reflect",
            "dilation": 5,
        },
        ValueError,
        ["padding_mode", "reflect", "5"],
    ),
    "mixing and add": (
        {"channel_filter": tensor(2, 4, 4, 5, 6), "combine": "add"},
        ValueError,
        ["combine", "mul", "add", "5 dimensions"],
    ),
    "mixing of more than 32 channels": (
        {
            "input": tensor(2, 33, 5, 6),
            "spatial_filter": tensor(2, 9, 5, 6),
            "channel_filter": tensor(2, 4, 33, 5, 6),
        },
        ValueError,
        ["channel_filter", "32", "2, 4, 33, 5, 6", "einsum"],
    ),
    "mixing to more than 32 channels": (
        {"channel_filter": tensor(2, 33, 4, 5, 6)},
        ValueError,
        ["channel_filter", "32", "2, 33, 4, 5, 6"],
    ),
    "mixing to no channels": (
        {"channel_filter": tensor(2, 0, 4, 5, 6)}, ValueError, ["channel_filter", "2, 0, 4, 5, 6"],
    ),
    "channels of the mixing matrix": (
        {"channel_filter": tensor(2, 4, 3, 5, 6)},
        ValueError,
        ["channel_filter", "(2 or 1, Co, 4, 5, 6)", "2, 4, 3, 5, 6"],
    ),
    "batch of the mixing matrix": (
        {"channel_filter": tensor(3, 4, 4, 5, 6)}, ValueError, ["channel_filter", "3, 4, 4, 5, 6"],
    ),
    "size of the mixing matrix": (
        {"channel_filter": tensor(2, 4, 4, 5, 1)}, ValueError, ["channel_filter", "2, 4, 4, 5, 1"],
    ),
    "no height": (
        {"input": tensor(2, 4, 0, 6), "spatial_filter": tensor(2, 18, 0, 6)},
        ValueError,
        ["input", "2, 4, 0, 6"],
    ),
    "no width": (
        {"input": tensor(2, 4, 5, 0), "spatial_filter": tensor(2, 18, 5, 0)},
        ValueError,
        ["input", "2, 4, 5, 0"],
    ),
    "no channels": (
        {"input": tensor(2, 0, 5, 6), "channel_filter": None}, ValueError, ["input", "2, 0, 5, 6"],
    ),
    "reflection of one pixel": (
        {
            "input": tensor(2, 4, 1, 6),
            "spatial_filter": tensor(2, 18, 1, 6),
            "channel_filter": None,
            "padding_mode": "reflect",
        },
        ValueError,
        ["padding_mode", "reflect", "1"],
    ),
    "reflection beyond the image by dilation": (
        {"padding_mode": "reflect", "dilation": (1, 6)},
        ValueError,
        ["padding_mode", "reflect", "6"],
    ),
    "input is a NumPy array": (
        {"input": np.ones((2, 4, 5, 6), np.float32)}, TypeError, ["input", "Tensor", "ndarray"],
    ),
    "spatial filter is a list": ({"spatial_filter": [1.0]}, TypeError, ["spatial_filter", "list"]),
    "channel filter is a number": ({"channel_filter": 2.0}, TypeError, ["channel_filter", "float"]),
    "sparse input": (
        {"input": tensor(2, 4, 5, 6).to_sparse()}, TypeError, ["input", "sparse"],
    ),
}  # fmt: skip


def good_call(device: str) -> dict[str, Any]:
    return CASE.operands(device)._asdict() | CASE.options


def call(operator: Any, arguments: dict[str, Any], device: str) -> Any:
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    operands = [moved.pop(name) for name in ("input", "spatial_filter", "channel_filter")]
    return operator(*operands, **moved)


def test_the_call_without_a_mistake(device: str) -> None:
    assert call(kpnops.decoupled_filter, good_call(device), device).shape == (2, 4, 5, 6)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str, device: str) -> None:
    change, exception, needles = WRONG[name]
    with pytest.raises(exception) as caught:
        call(kpnops.decoupled_filter, good_call(device) | change, device)
    assert type(caught.value) is exception
    for needle in needles:
        assert re.search(rf"(?<!\d){re.escape(needle)}(?!\d)", str(caught.value)), (
            f"{needle!r} is missing from: {caught.value}"
        )


@pytest.mark.parametrize("scale_factor", [0, -1, 1.5, True, "2"])
def test_wrong_scale_factor(scale_factor: Any, device: str) -> None:
    with pytest.raises((ValueError, TypeError), match="scale_factor"):
        call(kpnops.decoupled_filter, good_call(device) | {"scale_factor": scale_factor}, device)


@pytest.mark.parametrize("argument", ["input", "spatial_filter", "channel_filter"])
@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn],
    ids=str,
)
def test_wrong_dtype(dtype: torch.dtype, argument: str, device: str) -> None:
    arguments = good_call(device)
    arguments[argument] = torch.ones(arguments[argument].shape).to(dtype)
    with pytest.raises(TypeError, match=argument) as caught:
        call(kpnops.decoupled_filter, arguments, device)
    assert str(dtype) in str(caught.value)
    assert "float32" in str(caught.value)  # what was expected


def test_wrong_dtype_of_a_channel_filter_alone(device: str) -> None:
    change = {"spatial_filter": None, "channel_filter": tensor(2, 4, 9, dtype=torch.int32)}
    with pytest.raises(TypeError, match=r"channel_filter: .*int32"):
        call(kpnops.decoupled_filter, good_call(device) | change, device)


@pytest.mark.parametrize("argument", ["input", "spatial_filter", "channel_filter"])
def test_devices_that_differ(argument: str, device: str) -> None:
    arguments = good_call(device)
    arguments[argument] = arguments[argument].to("meta")
    operands = [arguments.pop(name) for name in CASE.operands()._fields]
    with pytest.raises(ValueError, match="meta") as caught:
        kpnops.decoupled_filter(*operands, **arguments)
    assert device in str(caught.value)
    assert re.search(r"^(spatial|channel)_filter", str(caught.value))


def test_fractional_floats_and_bad_values_are_never_read_as_options(device: str) -> None:
    for option in ("kernel_size", "stride", "dilation"):
        for value in (math.nan, 1.0, (1, None), {1, 2}, torch.tensor(1)):
            with pytest.raises(TypeError, match=option):
                call(kpnops.decoupled_filter, good_call(device) | {option: value}, device)


def test_integers_of_numpy_are_integers(device: str) -> None:
    image, taps = torch.randn(1, 2, 5, 6, device=device), torch.randn(1, 9, 10, 12, device=device)
    options: Any = {"kernel_size": 3, "dilation": (2, 1), "scale_factor": 2}
    integers: Any = {"kernel_size": np.int64(3), "dilation": (np.int32(2), np.int16(1))}
    integers |= {"scale_factor": np.uint8(2)}
    for op in (kpnops.decoupled_filter, kpnops.kernel_filter):
        assert torch.equal(op(image, taps, **integers), op(image, taps, **options))
    module = kpnops.nn.DecoupledFilter2d(**integers)
    assert [type(n) for n in (module.scale_factor, *module.kernel_size)] == [int, int, int]
    with pytest.raises(TypeError, match="kernel_size"):
        call(kpnops.decoupled_filter, good_call(device) | {"kernel_size": np.True_}, device)


def test_options_are_keywords(device: str) -> None:
    image, spatial, channel = CASE.operands(device)
    with pytest.raises(TypeError, match="positional"):
        kpnops.decoupled_filter(image, spatial, channel, 3)  # type: ignore[misc]


def test_reflection_as_far_as_it_goes_is_no_error(device: str) -> None:
    change = {"padding_mode": "reflect", "dilation": (4, 5)}
    assert call(kpnops.decoupled_filter, good_call(device) | change, device).isfinite().all()


def test_an_error_leaves_everything_as_it_was(device: str) -> None:
    arguments = good_call(device)
    before = {name: value.clone() for name, value in arguments.items() if torch.is_tensor(value)}
    with pytest.raises(ValueError, match="combine"):
        call(kpnops.decoupled_filter, arguments | {"combine": "sub"}, device)
    for name, value in before.items():
        assert torch.equal(arguments[name], value)
    assert call(kpnops.decoupled_filter, arguments, device).isfinite().all()


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", WRONG)
def test_the_reference_raises_the_same(name: str, device: str) -> None:
    change, exception, _ = WRONG[name]
    messages = []
    for operator in (kpnops.decoupled_filter, kpnops.reference.decoupled_filter):
        with pytest.raises(exception) as caught:
            call(operator, good_call(device) | change, device)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (2, 4, 5, 6)),
        ({"scale_factor": 3}, (2, 4, 15, 18)),
        ({"channel_filter": "mix", "output_channels": 7}, (2, 7, 5, 6)),
        ({"stride": (2, 4), "spatial": False, "channel_filter": "image"}, (2, 4, 3, 2)),
    ],
    ids=str,
)
def test_meta_tensors_give_shapes(
    change: dict[str, Any], expected: tuple[int, ...], device: str
) -> None:
    case = replace(CASE, **change)
    operands = [None if t is None else t.to("meta") for t in case.operands()]
    assert kpnops.decoupled_filter(*operands, **case.options).shape == expected


def test_errors_under_compile_are_the_same(device: str) -> None:
    # A wrong shape must be refused before the operator, whoever traces the call.
    compiled = torch.compile(kpnops.decoupled_filter, backend="eager")
    arguments = good_call(device) | {"channel_filter": tensor(3, 4, 9).to(device)}
    with pytest.raises(ValueError, match="channel_filter") as caught:
        call(kpnops.decoupled_filter, arguments, device)
    with pytest.raises(ValueError, match="channel_filter") as compiled_error:
        call(compiled, arguments, device)
    assert str(caught.value) == str(compiled_error.value)
