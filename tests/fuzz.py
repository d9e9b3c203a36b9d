"""Problems drawn at random from the whole contract, with Hypothesis; and calls with a mistake."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.cases import Case, Operands
from tests.layouts import LAYOUTS, arrange

__all__ = ["IN_INTERPRETER", "ON_CPU", "Limits", "Mistake", "Problem", "mistakes", "problems"]

PADDING_MODES = ["zeros", "replicate", "reflect", "circular"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Limits:
    """How large a problem may be."""

    work: int  # outputs of all channels times taps, about
    longest_side: int  # of the kernel
    dilations: tuple[int, ...]


ON_CPU = Limits(work=1200, longest_side=11, dilations=(1, 2, 3, 8, 16))
IN_INTERPRETER = Limits(work=400, longest_side=5, dilations=(1, 2, 3))


@dataclass(frozen=True)
class Problem:
    """One call with all that may matter: its printed form is enough to repeat it."""

    case: Case
    layouts: tuple[str, ...]  # of the operands and of the gradient that arrives
    needs_grad: tuple[bool, ...]
    logit_scale: float
    specials: tuple[tuple[str, float, int], ...]  # name, what is put there, flat index
    seed: int

    def tensors(self) -> tuple[Operands, Tensor]:
        """The operands and the gradient that arrives."""
        operands, cotangent = self.case.operands(seed=self.seed), self.case.cotangent()
        if operands.spatial_filter is not None:
            operands.spatial_filter.mul_(self.logit_scale)
        named = {**operands._asdict(), "cotangent": cotangent}
        for name, value, index in self.specials:
            if named[name] is not None and named[name].numel():
                flat = named[name].view(-1)
                flat[index % len(flat)] = value
        arranged = map(arrange, named.values(), self.layouts)
        *three, cotangent = arranged
        return Operands(*three), cotangent

    @property
    def infinite_or_nan(self) -> tuple[str, ...]:
        """Gradients in which either will do, since sums are factored in them.

        The gradient of a per-pixel gain is the incoming one times the sum over the taps; under
        softmax sum_t P dP is the incoming one, through gain or matrix, times that sum.
        """
        infinite = {name for name, value, _ in self.specials if math.isinf(value)}
        either = ()
        if "cotangent" in infinite and self.case.channel_filter == "pixel":
            either = ("grad_channel_filter",)
        if infinite & {"cotangent", "channel_filter"} and self.case.normalize is not None:
            either += ("grad_spatial_filter",)
        return either


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@st.composite
def kernel_sizes(draw: st.DrawFn, limits: Limits) -> tuple[int, int]:
    short = st.integers(1, 4)
    sizes = st.one_of(
        st.just((3, 3)),
        st.tuples(short, short),
        st.tuples(st.integers(1, limits.longest_side), st.integers(1, 2)),
        st.tuples(st.integers(1, 2), st.integers(1, limits.longest_side)),
        st.just((5, 5)),
    )
    return draw(sizes)


@st.composite
def dtypes(draw: st.DrawFn) -> tuple[torch.dtype, ...]:
    one = st.sampled_from(DTYPES)
    same = st.sampled_from(DTYPES[:2]).map(lambda dtype: (dtype,) * 3)
    return draw(
        st.one_of(same, same, one.map(lambda dtype: (dtype,) * 3), st.tuples(one, one, one))
    )


@st.composite
def sizes(
    draw: st.DrawFn, pixels: int, kernel: tuple, dilation: tuple, mode: str
) -> tuple[int, int]:
    """Rows and columns of the input, about ``pixels`` at most."""
    height = draw(st.integers(1, max(1, min(6, pixels))))
    width = draw(st.integers(1, max(1, min(40, pixels // height))))
    if mode == "reflect":  # one reflection must suffice
        height = max(height, kernel[0] // 2 * dilation[0] + 1)
        width = max(width, kernel[1] // 2 * dilation[1] + 1)
    return height, width


@st.composite
def cases(draw: st.DrawFn, limits: Limits) -> Case:
    spatial = draw(st.integers(0, 7)) > 0
    form = draw(st.sampled_from(["none", "image", "pixel", "mix"])) if spatial else "image"
    batch = draw(st.sampled_from([1, 1, 1, 2, 2, 3, 0]))
    channels = draw(st.sampled_from([1, 2, 3, 3, 4, 5, 6, 8]))
    kernel = draw(kernel_sizes(limits))
    mode = draw(st.sampled_from(PADDING_MODES))
    near = tuple(step for step in limits.dilations if step <= (2 if mode == "reflect" else 16))
    dilation = draw(st.one_of(st.just((1, 1)), st.tuples(*[st.sampled_from(near)] * 2)))
    steps = st.integers(1, 3)
    stride, scale = (1, 1), 1
    match draw(st.integers(0, 3)):
        case 0:
            stride = draw(st.tuples(steps, steps))
        case 1 if spatial:
            scale = draw(steps)
    cost = max(batch, 1) * channels * kernel[0] * kernel[1]
    pixels = limits.work * stride[0] * stride[1] // (cost * scale**2)
    size = draw(sizes(pixels, kernel, dilation, mode))
    rounding = tuple(
        draw(st.sampled_from(["ceil", "floor"])) if spatial and n >= s else "ceil"
        for n, s in zip(size, stride, strict=True)
    )
    return Case(
        batch=batch,
        channels=channels,
        size=size,
        kernel_size=kernel,
        groups=draw(st.sampled_from(divisors(channels))) if spatial else 1,
        channel_filter=form,
        channel_batch=draw(st.sampled_from([None, 1])),
        output_channels=draw(st.integers(1, 5)) if form == "mix" else None,
        spatial=spatial,
        stride=stride,
        dilation=dilation,
        scale_factor=scale,
        rounding=rounding,
        padding_mode=mode,
        combine="mul" if form == "mix" else draw(st.sampled_from(["mul", "add"])),
        normalize=draw(st.sampled_from([None, "softmax"])) if spatial else None,
        dtypes=draw(dtypes()),
    )


@st.composite
def problems(draw: st.DrawFn, limits: Limits) -> Problem:
    """Problems without a mistake."""
    case = draw(cases(limits))
    names = st.sampled_from([*Operands._fields, "cotangent"])
    values = st.sampled_from([-math.inf, math.inf, math.nan])
    special = st.tuples(names, values, st.integers(0, 10**6))
    if case.normalize is not None:
        special |= st.tuples(st.just("spatial_filter"), st.just(-math.inf), st.integers(0, 10**6))
    specials = draw(st.one_of(st.just([]), st.just([]), st.lists(special, max_size=4)))
    scales = st.just(1.0)
    if case.normalize is not None and not specials:
        scales = st.sampled_from([1.0, 1.0, 20.0, 1e4])
    return Problem(
        case,
        tuple(draw(st.one_of(st.just("contiguous"), st.sampled_from(LAYOUTS))) for _ in range(4)),
        draw(st.one_of(st.just((True,) * 3), st.tuples(*[st.booleans()] * 3))),
        draw(scales),
        tuple(specials),
        draw(st.integers(0, 10**6)),
    )


# ---------------------------------------------------------------------------------------- mistakes

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A call that is wrong, and the names of which one must be in the message."""

    case: Case
    changed: str
    names: tuple[str, ...]
    arguments: Arguments = field(repr=False)


WRONG_OPTIONS: dict[str, list[Any]] = {
    "kernel_size": [0, -1, (3, -3), (3,), (1, 2, 3), 2.0, "3", True, (1, None), torch.tensor(3)],
    "stride": [0, (1, -1), 1.5, None, "1", (1, 1, 1), True, math.nan, -(10**30), 10**30],
    "dilation": [0, (-2, 1), 1.5, None, "1", (1,), False, math.inf, {1, 2}, 10**30],
    "padding_mode": ["symmetric", "ZEROS", "", None, 3, b"zeros"],
    "combine": ["sub", "", None, 1, ["mul"]],
    "normalize": ["l1", "", False, 1, torch.softmax],
    "scale_factor": [0, -1, 1.5, None, True, "2", (2, 2), math.nan],
}
OTHER_DTYPES = [torch.int64, torch.uint8, torch.bool, torch.complex64]


def wrong_tensors(name: str, tensor: Tensor, case: Case) -> list[tuple[Any, tuple[str, ...]]]:
    """What may be passed in place of a tensor, and who must be named."""
    everyone = Operands._fields
    wrong: list[tuple[Any, tuple[str, ...]]] = [
        (tensor.to(other), (name,)) for other in OTHER_DTYPES
    ]
    wrong += [(value, (name,)) for value in (1.0, [1.0], "x", tensor.tolist())]
    wrong.append((tensor.float().to_sparse(), (name,)))
    wrong.append((tensor.to("meta"), everyone))
    wrong += [(tensor.flatten(1), (name,)), (tensor[None, None], (name,))]
    shape = list(tensor.shape)

    def of(axis: int, size: int) -> Tensor:
        return tensor.new_ones([*shape[:axis], size, *shape[axis + 1 :]])

    if name == "input":
        return [*wrong, (None, (name,)), *((of(axis, 0), (name,)) for axis in (1, 2, 3))]
    wrong.append((of(0, case.batch + 2), (name,)))
    if name == "spatial_filter":
        wrong.append((of(1, (case.channels + 1) * case.taps), (name,)))
        wrong += [(of(axis, shape[axis] + 2), (name,)) for axis in (2, 3)]
        return wrong
    first = 2 if case.channel_filter == "mix" else 1
    return wrong + [(of(axis, shape[axis] + 1), (name,)) for axis in range(first, len(shape))]


def wrong_together(case: Case, arguments: Arguments) -> list[tuple[Arguments, tuple[str, ...]]]:
    """Arguments that do not go together, and who must be named."""
    # no filter fits it, whatever the stride
    other = torch.ones(case.batch + 2, case.channels + 1, 1, 1)
    wrong: list[tuple[Arguments, tuple[str, ...]]] = [
        ({"scale_factor": 2, "stride": (1, 2)}, ("scale_factor",)),
        ({"kernel_size": 10**6}, ("kernel_size", "spatial_filter", "channel_filter")),
        ({"stride": 10**9 + 1, "scale_factor": 1, "input": other}, Operands._fields),
    ]
    if case.taps > 1:
        mirror = {"padding_mode": "reflect", "dilation": 1000, "scale_factor": 1}
        wrong.append((mirror, ("padding_mode", "spatial_filter")))
    if case.spatial and case.channel_filter != "image":
        wrong.append(({"spatial_filter": None}, ("spatial_filter",)))
    if case.channel_filter == "mix":
        wrong.append(({"combine": "add"}, ("combine",)))
        many = arguments["channel_filter"].new_ones((1, 33, case.channels, *case.output_size))
        wrong.append(({"channel_filter": many}, ("channel_filter",)))
    if not case.spatial:
        wrong.append(({"normalize": "softmax"}, ("normalize",)))
        wrong.append(({"scale_factor": 2, "stride": 1}, ("scale_factor",)))
        wrong.append(({"channel_filter": None}, ("spatial_filter", "channel_filter")))
    return wrong


@st.composite
def mistakes(draw: st.DrawFn, limits: Limits) -> Mistake:
    """Calls with one mistake."""
    case = draw(cases(limits))
    arguments: Arguments = {**case.operands()._asdict(), **case.options}
    kind = draw(st.sampled_from(["option", "tensor", "together"]))
    if kind == "option":
        name = draw(st.sampled_from(sorted(WRONG_OPTIONS)))
        change, names = {name: draw(st.sampled_from(WRONG_OPTIONS[name]))}, (name,)
    elif kind == "tensor":
        there = [name for name in Operands._fields if arguments[name] is not None]
        name = draw(st.sampled_from(there))
        wrong = wrong_tensors(name, arguments[name], case)
        value, names = wrong[draw(st.integers(0, len(wrong) - 1))]
        change = {name: value}
    else:
        together = wrong_together(case, arguments)
        change, names = together[draw(st.integers(0, len(together) - 1))]
    changed = ", ".join(f"{name}={describe(value)}" for name, value in change.items())
    return Mistake(case, changed, names, arguments | change)


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.layout} {tuple(value.shape)} on {value.device}"
    return repr(value)[:80]
