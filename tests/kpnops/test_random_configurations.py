"""Random configurations of everything at once, against the float64 loop, gradients included."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

import kpnops
from tests.helpers import (
    INTERPRETED,
    LAYOUTS,
    PADDING_MODES,
    Case,
    Operands,
    arrange,
    check,
    has_promised_format,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")


class Limits(NamedTuple):
    count: int
    most_taps: int
    largest_size: int
    largest_dilation: int
    most_channels: int


ON_CPU = Limits(40, 99, 12, 4, 8)
IN_INTERPRETER = Limits(20, 6, 4, 2, 6)  # which visits every tap of every program in Python
LIMITS = IN_INTERPRETER if INTERPRETED else ON_CPU
KERNEL_SIZES = [
    (1, 1), (2, 2), (3, 3), (3, 5), (4, 3), (2, 3), (3, 2), (1, 7),
    (5, 2), (5, 5), (7, 7), (9, 9), (11, 3), (3, 18),
]  # fmt: skip

# A full Jacobian takes two calls for each element of the operands, and a backward for each of the
# output; larger problems are checked along one random direction.
MOST_CALLS_FOR_A_JACOBIAN = 1500


def draw_case(rng: np.random.Generator, limits: Limits) -> Case:
    counts = [count for count in (1, 2, 3, 4, 5, 6, 8) if count <= limits.most_channels]
    channels = int(rng.choice(counts))
    groups = int(rng.choice([group for group in range(1, channels + 1) if channels % group == 0]))
    kernel_sizes = [size for size in KERNEL_SIZES if math.prod(size) <= limits.most_taps]
    furthest = limits.largest_dilation
    kernel_size = kernel_sizes[rng.integers(len(kernel_sizes))]
    dilation, stride, scale_factor = (1, 1), (1, 1), 1
    if rng.random() < 0.5:  # the others are on the fast path
        dilation = (int(rng.integers(1, furthest + 1)), int(rng.integers(1, furthest + 1)))
        if rng.random() < 0.3:
            scale_factor = 2
        else:
            stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    mode = str(rng.choice(PADDING_MODES))
    largest = limits.largest_size // scale_factor
    size = [int(rng.integers(1, largest + 1)) for _ in range(2)]
    if mode == "reflect":  # one reflection must suffice
        reaches = [k // 2 * d for k, d in zip(kernel_size, dilation, strict=True)]
        size = [max(n, reach + 1) for n, reach in zip(size, reaches, strict=True)]
    rounding = [
        str(rng.choice(["floor", "ceil"])) if n >= s else "ceil"
        for n, s in zip(size, stride, strict=True)
    ]
    channel_filter = str(rng.choice(["none", "image", "image", "pixel", "pixel", "mix"]))
    case = Case(
        batch=int(rng.integers(1, 3)),
        channels=channels,
        size=(size[0], size[1]),
        kernel_size=kernel_size,
        groups=groups,
        channel_filter=channel_filter,
        output_channels=int(rng.integers(1, 5)),
        channel_batch=[None, 1][rng.integers(2)],
        stride=stride,
        dilation=dilation,
        scale_factor=scale_factor,
        rounding=(rounding[0], rounding[1]),
        padding_mode=mode,
        combine=str(rng.choice(["mul", "add"])) if channel_filter != "mix" else "mul",
        normalize=[None, "softmax"][rng.integers(2)],
    )
    if channel_filter == "image" and scale_factor == 1 and rng.random() < 0.3:
        return replace(case, spatial=False, normalize=None, groups=1, rounding=("ceil", "ceil"))
    return case


def draw(seed: int, limits: Limits = LIMITS) -> tuple[Case, list[str]]:
    rng = np.random.default_rng(seed)
    return draw_case(rng, limits), [str(rng.choice(LAYOUTS)) for _ in range(4)]


@pytest.mark.parametrize("seed", range(LIMITS.count))
def test_random_configuration(seed: int, device: str) -> None:
    case, layouts = draw(seed)
    case = case.with_dtype(torch.float32 if INTERPRETED else torch.float64)
    operands = Operands(*map(arrange, case.operands(device, seed), layouts[:3]))
    cotangent = arrange(case.cotangent(device, seed + 1), layouts[3])
    actual = check(kpnops.decoupled_filter, case, operands, cotangent)
    assert has_promised_format(actual["output"], operands.input)


@pytest.mark.parametrize("seed", range(LIMITS.count))
def test_gradcheck_of_random_configuration(seed: int, device: str) -> None:
    case, layouts = draw(seed)
    operands = case.operands(device, seed)
    there = {name: t for name, t in operands._asdict().items() if t is not None}
    # All operands are parts of one vector: gradcheck's fast mode then takes a single direction.
    leaf = torch.cat([tensor.flatten() for tensor in there.values()]).requires_grad_()

    def function(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([tensor.numel() for tensor in there.values()])
        pairs = zip(there.items(), parts, strict=True)
        shaped = operands._replace(**{name: part.view_as(like) for (name, like), part in pairs})
        return kpnops.decoupled_filter(*map(arrange, shaped, layouts), **case.options)

    assert torch.autograd.gradcheck(
        function,
        [leaf],
        fast_mode=INTERPRETED
        or 2 * leaf.numel() + math.prod(case.output_shape) > MOST_CALLS_FOR_A_JACOBIAN,
        check_undefined_grad=not INTERPRETED,  # about autograd, not about kernels, and slow
    )


@pytest.mark.parametrize("limits", [ON_CPU, IN_INTERPRETER])
def test_the_draw_covers_the_contract(limits: Limits) -> None:
    # What the seeds happen to visit; a change of the draw must not lose any of it.
    cases = [draw(seed, limits)[0] for seed in range(limits.count)]
    assert {case.padding_mode for case in cases} == set(PADDING_MODES)
    assert {case.channel_filter for case in cases} == {"none", "image", "pixel", "mix"}
    for chosen in [
        lambda case: case.combine == "add" and case.channel_filter == "image",
        lambda case: case.combine == "add" and case.channel_filter == "pixel",
        lambda case: case.channel_batch == 1 and case.batch == 2 and case.channel_filter != "none",
        lambda case: case.normalize is not None and case.channel_filter == "image",
        lambda case: case.normalize is not None and case.channel_filter == "pixel",
        lambda case: case.normalize is not None and case.scale_factor == 2,
        lambda case: case.scale_factor == 2 and case.padding_mode != "zeros",
        lambda case: not case.spatial,
        lambda case: 1 < case.groups < case.channels,
        lambda case: case.groups == case.channels > 1,
        lambda case: case.output_size != replace(case, rounding=("ceil", "ceil")).output_size,
        lambda case: case.dilation[0] != case.dilation[1],
        lambda case: case.taps > 49 or limits.most_taps <= 49,
        lambda case: case.kernel_size[0] % 2 == 0 or case.kernel_size[1] % 2 == 0,
        lambda case: case.size[1] < case.kernel_size[1] and case.stride == (1, 1),
    ]:
        assert any(map(chosen, cases))
