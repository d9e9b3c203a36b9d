"""Backwards in strips of rows: the same bits as in one piece, in the workspace that is allowed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels to cut")

from kpnops._decoupled_filter import strips, triton_backend
from kpnops._decoupled_filter.call import Call, Gradients
from kpnops._decoupled_filter.geometry import Window
from tests.helpers import PADDING_MODES, Case
from tests.routes import ON_GPU, ON_INTERPRETER

pytestmark = [
    pytest.mark.usefixtures("poisoned_allocations"),
    pytest.mark.parametrize("device", [ON_INTERPRETER, ON_GPU], indirect=True),
]

BF16, F32 = torch.bfloat16, torch.float32
SMALL = {"general": (7, 3), "fast": (9, 3)}


def softmax(**options) -> Case:
    options = {"size": SMALL["fast"], "kernel_size": (3, 2), "channel_filter": "none"} | options
    return Case(normalize="softmax", **options).with_dtype(F32)


def mixing(**options) -> Case:
    options = {"size": SMALL["fast"], "kernel_size": (2, 3), "output_channels": 2} | options
    return Case(channel_filter="mix", **options).with_dtype(F32)


GENERAL = {"size": SMALL["general"], "dilation": (1, 2)}
CASES = {
    "few channels": softmax(),
    "few channels, gains, images": softmax(channel_filter="pixel", batch=2, kernel_size=(2, 2)),
    "many channels": softmax(channels=5),
    "filter per image": softmax(
        channels=2, channel_filter="image", batch=2, groups=2, size=(17, 3)
    ),
    "three rows of taps after each": softmax(kernel_size=(6, 1)),
    "general": softmax(**GENERAL, groups=3),
    "general, filter per image": softmax(**GENERAL | {"channel_filter": "image", "size": (9, 3)}),
    "general, dilated": softmax(size=(9, 2), dilation=(2, 1), channels=2),
    "general, strided": softmax(**GENERAL | {"stride": (2, 1)}),
    "general, strided, rounded down": softmax(
        size=(11, 3), stride=(3, 1), rounding=("floor", "floor"), channel_filter="image"
    ),
    "general, upscaled": softmax(size=(5, 3), scale_factor=2),
    "general, images": softmax(size=(2, 3), dilation=(2, 2), batch=5),
    "mixing": mixing(),
    "mixing, softmax": mixing(normalize="softmax", batch=2),
    "mixing, many channels": mixing(channels=5),
    "mixing, general": mixing(**GENERAL, normalize="softmax"),
    "mixing, upscaled": mixing(size=(5, 3), scale_factor=2),
    "mixing, images": mixing(size=(3, 3), batch=4, channel_batch=1),
}
# The interpreter takes seconds for each of the others.
QUICK = {
    "few channels",
    "general",
    "general, even",
    "general, filter per image",
    "general, dilated",
    "general, strided, rounded down",
    "general, images",
    "mixing",
    "mixing, general",
    "banded, taps apart",
}
# Rows that padding reads again: at both ends of the image, or from the other one.
PADDED = {
    "few channels": softmax(kernel_size=(2, 2)),
    "mixing": mixing(channels=2),
    "general": softmax(**GENERAL),
    "general, even": softmax(**GENERAL | {"kernel_size": (2, 2)}),
    "general, strided, rounded down": CASES["general, strided, rounded down"],
    "general, upscaled": softmax(size=(5, 2), scale_factor=2, kernel_size=(2, 1)),
    "mixing, strided": mixing(size=(7, 3), stride=(2, 1), normalize="softmax"),
}
BANDED = {
    "banded": softmax(channels=16, kernel_size=(2, 3), size=(9, 2)),
    "banded, taps apart": softmax(channels=16, kernel_size=(4, 1), size=(9, 2)),
    "banded, mixing": mixing(channels=16, kernel_size=(2, 1), size=(9, 2)),
}


def quick(cases: dict[str, Case]) -> list[Any]:
    """The names of the cases; those that take long are marked so."""
    marks = {True: [], False: [pytest.mark.slow]}
    return [pytest.param(name, marks=marks[name in QUICK]) for name in cases]


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Sets how many numbers a workspace may hold; returns a list that gets the number of strips of
    each backward."""

    def allow(numbers: int) -> list[int]:
        counted: list[int] = []

        def cut(*arguments, **options):
            found = strips.strips(*arguments, **options)
            counted.append(len(found))
            return found

        monkeypatch.setattr(triton_backend, "TILE_ROWS", 4)  # of tiles in narrow images
        monkeypatch.setattr(triton_backend, "allowed_bytes", lambda *_: numbers * 4)
        monkeypatch.setattr(triton_backend, "strips", cut)
        return counted

    return allow


def gradients(case: Case, device: str, allow: Callable[[int], list[int]], numbers: int) -> Any:
    """The gradients, and into how many strips they were cut."""
    counted = allow(numbers)
    operands = case.operands(device)
    window = Window(
        case.kernel_size, case.stride, case.dilation, case.padding_mode, case.scale_factor
    )
    call = Call(*operands, window, case.combine, case.normalize is not None)
    grads = Gradients(*(None if one is None else torch.empty_like(one) for one in operands))
    triton_backend.backward(call, case.cotangent(device), grads)
    return grads, counted


def compare(case: Case, device: str, allow: Callable[[int], list[int]]) -> None:
    whole, counted = gradients(case, device, allow, 10**9)
    assert counted == [1]
    images = case.batch > 2
    pixels = case.output_size[0] * case.output_size[1]
    parts, counted = gradients(case, device, allow, 2 * 3 * pixels if images else 1)
    assert counted[0] >= (2 if images else 2 * case.batch)
    for one, expected in zip(parts, whole, strict=True):
        assert expected is None or torch.equal(one, expected)


@pytest.mark.parametrize("name", quick(CASES))
def test_strips_give_the_same_bits(
    name: str, device: str, cuts: Callable[[int], list[int]]
) -> None:
    compare(CASES[name], device, cuts)


@pytest.mark.parametrize("name", quick(BANDED))
def test_strips_of_banded_products(
    name: str, device: str, cuts: Callable[[int], list[int]]
) -> None:
    compare(BANDED[name].with_dtype(BF16), device, cuts)


@pytest.mark.parametrize("mode", PADDING_MODES[1:])
@pytest.mark.parametrize("name", quick(PADDED))
def test_strips_under_other_paddings(
    name: str, mode: str, device: str, cuts: Callable[[int], list[int]]
) -> None:
    compare(replace(PADDED[name], padding_mode=mode), device, cuts)
