"""What is right: a float64 reference, tile by tile, and the error that a right result may have."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import kpnops
from bench.cases import BACKWARD, FORWARD, SOFTMAX, Case, Tensors, as_dtype

# One float64 copy of the unfolded tile; the reference holds several.
TILE_BYTES = {"cpu": 128 * 2**20, "cuda": 1024 * 2**20}
# Chance that the elementwise budget refuses a result whose rounding errors are independent.
REFUSAL_CHANCE = 1e-6
# Roundings of a softmax beside its sum: the exponent's error is that of a difference of logits, up
# to 8 times their unit, and an exponential, a division and a rounding follow.
SOFTMAX_ROUNDINGS = 16
RESULT = "result"
GRADIENTS = ("grad input", "grad spatial_filter", "grad channel_filter")
Index = tuple[slice, ...]


class WrongResultError(Exception):
    """A provider's result is further from the float64 reference than rounding explains."""


class Tile(NamedTuple):
    """A part of one tensor of the oracle."""

    tensor: str  # RESULT or one of GRADIENTS
    index: Index  # where the part lies
    expected: Tensor  # float64
    magnitude: Tensor  # float64: the same sums over absolute values


@dataclass
class _Comparison:
    """Running sums over the tiles of one tensor."""

    squared_error: float = 0.0
    squared_norm: float = 0.0
    elementwise: float = 0.0  # largest error, as a multiple of its own budget


def oracle_tiles(case: Case, tensors: Tensors, pass_name: str) -> Iterator[Tile]:
    """Yield the result and, if asked for, all gradients in float64, tile by tile.

    A tile of output pixels comes with a halo of twice the filter's reach: the gradient of an input
    pixel needs the cotangents within one reach, and nothing beyond.

    Args:
        case: the problem.
        tensors: its tensors, any data type.
        pass_name: one of `cases.PASSES`; `FORWARD` leaves the gradients out.

    Yields:
        The tiles; the channel filter's gradient per image is one tile and comes last.
    """
    per_image = pass_name != FORWARD and case.channel_filter == "image"
    wanted = _outputs(pass_name)
    totals = [
        torch.zeros(tensors.channel_filter.shape, dtype=torch.float64, device=tensors.input.device)
        for _ in range(2 if per_image else 0)
    ]
    side = _tile_side(case, tensors.input.device)
    for image in range(case.batch):
        for top in range(0, case.height, side):
            for left in range(0, case.width, side):
                core = (slice(top, top + side), slice(left, left + side))
                exact, magnitude = (
                    _tile(case, tensors, pass_name, image, core, absolute)
                    for absolute in (False, True)
                )
                if per_image:
                    totals[0][image] += exact.pop(GRADIENTS[2])[0]
                    totals[1][image] += magnitude.pop(GRADIENTS[2])[0]
                index = (slice(image, image + 1), slice(None), *core)
                for name, expected in exact.items():
                    if name not in wanted:
                        continue
                    yield Tile(name, index, expected, magnitude[name])
    if per_image:
        yield Tile(GRADIENTS[2], (slice(None),), *totals)


def _outputs(pass_name: str) -> tuple[str, ...]:
    """Return what a call of the pass returns."""
    if pass_name == FORWARD:
        return (RESULT,)
    return GRADIENTS if pass_name == BACKWARD else (RESULT, *GRADIENTS)


def _tile_side(case: Case, device: torch.device) -> int:
    halo = 4 * (case.kernel_size // 2)
    pixels = TILE_BYTES[device.type] // (8 * case.channels * case.taps)
    return max(16, math.isqrt(pixels) - halo)


def _tile(
    case: Case, tensors: Tensors, pass_name: str, image: int, core: Index, absolute: bool
) -> dict[str, Tensor]:
    """Return result and gradients on one tile; the per-image gradient is the tile's share of it.

    With absolute values they are sums of magnitudes, in which a softmax's probabilities stand as
    they are.
    """
    halo = 2 * (case.kernel_size // 2)
    slab = tuple(slice(max(0, axis.start - halo), axis.stop + halo) for axis in core)
    inner = (
        slice(None),
        slice(None),
        *(
            slice(axis.start - outer.start, axis.stop - outer.start)
            for axis, outer in zip(core, slab, strict=True)
        ),
    )

    def cut(tensor: Tensor, of_pixels: bool = True) -> Tensor:
        part = tensor[image : image + 1]
        part = (part[:, :, slab[0], slab[1]] if of_pixels else part).double()
        return part.abs() if absolute else part

    spatial, normalize = cut(tensors.spatial_filter), case.normalize
    if normalize == SOFTMAX and absolute:
        logits = tensors.spatial_filter[image : image + 1, :, slab[0], slab[1]].double()
        spatial, normalize = logits.softmax(1), None
    arguments = [
        cut(tensors.input),
        spatial.detach(),
        cut(tensors.channel_filter, case.channel_filter == "pixel"),
    ]
    if pass_name != FORWARD:
        arguments = [argument.requires_grad_() for argument in arguments]
    result = kpnops.reference.decoupled_filter(
        *arguments,
        kernel_size=case.kernel_size,
        normalize="softmax" if normalize == SOFTMAX else None,
    )
    values = {RESULT: result[inner].detach()}
    if pass_name == FORWARD:
        return values
    cotangent = cut(tensors.cotangent)
    if case.channel_filter == "image":
        (values[GRADIENTS[2]],) = torch.autograd.grad(
            result[inner], arguments[2:], cotangent[inner], retain_graph=True
        )
        arguments.pop()
    gradients = list(torch.autograd.grad(result, arguments, cotangent))
    if absolute and case.normalize == SOFTMAX:  # P (dP - sum P dP), each term positive
        mean = (spatial * gradients[1]).sum(1, keepdim=True)
        gradients[1] = spatial * (gradients[1] + mean)
    values |= {name: gradient[inner] for name, gradient in zip(GRADIENTS, gradients, strict=False)}
    return values


def check(
    case: Case,
    outputs: tuple[Tensor, ...],
    tiles: Iterable[Tile],
    working_dtype: torch.dtype | float,
    pass_name: str | None = None,
) -> float:
    """Compare a provider's outputs with the oracle, as whole tensors and element by element.

    With u the unit roundoff of the working type (products, and sums over at most K*K taps), u32
    that of float32 (longer sums), u' that of the output and n the number of terms:

    * whole tensor: ||error|| <= (u sqrt(K*K/2 + 3) + u32 sqrt(n/2 + 3) + u') ||expected||. The
      data are independent with zero mean, so that after i of n terms the sum has sqrt(i/n) of its
      final norm; each addition rounds by u of that, independently; three roundings are the
      products'.
    * element: |error| <= (u g(K*K + 3) + u32 g(n + 3)) sum|terms| + u' |expected| with
      g(n) = min(n, sqrt(2 n log(2 n N / chance))) over N elements: the worst case, or the
      probabilistic bound of Higham and Mary (SIAM J. Sci. Comput. 41(5), 2019, Theorem 3.1).

    A softmax adds `SOFTMAX_ROUNDINGS` to the terms of the working type.

    Args:
        case: the problem.
        outputs: result, then the gradients in the order of the arguments if there are any.
        tiles: the oracle's tiles, as many tensors as there are outputs.
        working_dtype: coarsest data type to which the provider rounds intermediate values, or the
            unit roundoff of a format that is no data type.
        pass_name: which outputs there are; None takes as many as came, the result first.

    Returns:
        The largest error as a multiple of its budget, at most 1.

    Raises:
        WrongResultError: a shape or data type differs, a value is not finite, or an error exceeds
            its budget.
    """
    names = (RESULT, *GRADIENTS) if pass_name is None else _outputs(pass_name)
    named: dict[str, Tensor] = dict(zip(names, outputs, strict=pass_name is not None))
    _check_form(case, named)
    comparisons = {name: _Comparison() for name in named}
    for tile in tiles:
        error = (named[tile.tensor][tile.index].double() - tile.expected).abs()
        budget = _element_budget(case, named[tile.tensor], tile, working_dtype)
        # A budget of 0 (no terms) admits an error of 0 only; NaN compares as wrong below.
        ratio = torch.where(error == 0, 0.0, error / budget).max()
        comparison = comparisons[tile.tensor]
        if not ratio <= 1:
            raise WrongResultError(
                f"{tile.tensor}: an error is {ratio.item():.3g} times its rounding budget "
                f"(largest error {error.max().item():.3g})"
            )
        comparison.elementwise = max(comparison.elementwise, ratio.item())
        comparison.squared_error += error.square().sum().item()
        comparison.squared_norm += tile.expected.square().sum().item()
    return max(
        _judge(case, name, named[name], comparison, working_dtype)
        for name, comparison in comparisons.items()
    )


def _check_form(case: Case, named: dict[str, Tensor]) -> None:
    """Raise WrongResultError where an output has not the shape and data type of its definition."""
    image = (case.batch, case.channels, case.height, case.width)
    per_image = (case.batch, case.channels, case.taps)
    filter_dtype = as_dtype(case.filter_dtype)
    forms = {
        RESULT: (image, case.result_dtype),
        GRADIENTS[0]: (image, as_dtype(case.input_dtype)),
        GRADIENTS[1]: ((case.batch, case.taps, case.height, case.width), filter_dtype),
        GRADIENTS[2]: (image if case.channel_filter == "pixel" else per_image, filter_dtype),
    }
    for name, actual in named.items():
        form = (tuple(actual.shape), actual.dtype)
        if form != forms[name]:
            raise WrongResultError(f"{name}: expected shape and dtype {forms[name]}, got {form}")


def _judge(
    case: Case,
    name: str,
    actual: Tensor,
    comparison: _Comparison,
    working_dtype: torch.dtype | float,
) -> float:
    """Return the larger of elementwise and whole-tensor error, as multiples of their budgets."""
    budget = (
        unit_roundoff(working_dtype) * math.sqrt(case.taps / 2 + 3 + _softmax_roundings(case))
        + unit_roundoff(torch.float32) * math.sqrt(_terms(case, name) / 2 + 3)
        + unit_roundoff(actual.dtype)
    )
    ratio = math.sqrt(comparison.squared_error) / (budget * math.sqrt(comparison.squared_norm))
    if not ratio <= 1:
        raise WrongResultError(f"{name}: the error's norm is {ratio:.3g} times its rounding budget")
    return max(ratio, comparison.elementwise)


def _element_budget(
    case: Case, actual: Tensor, tile: Tile, working_dtype: torch.dtype | float
) -> Tensor:
    terms = _terms(case, tile.tensor)
    roundings = case.taps + 3 + _softmax_roundings(case)
    growth = unit_roundoff(working_dtype) * _growth(roundings, actual.numel())
    growth += unit_roundoff(torch.float32) * _growth(terms + 3, actual.numel())
    return growth * tile.magnitude + unit_roundoff(actual.dtype) * tile.expected.abs()


def _softmax_roundings(case: Case) -> int:
    return SOFTMAX_ROUNDINGS if case.normalize == SOFTMAX else 0


def _terms(case: Case, name: str) -> int:
    """Return how many products one element of the tensor is a sum of."""
    if name == GRADIENTS[1]:
        return case.channels
    if name == GRADIENTS[2] and case.channel_filter == "image":
        return case.height * case.width
    return case.taps


def _growth(roundings: int, elements: int) -> float:
    probable = math.sqrt(2 * roundings * math.log(2 * roundings * elements / REFUSAL_CHANCE))
    return min(roundings, probable)


def unit_roundoff(dtype: torch.dtype | float) -> float:
    """Return the largest relative error of rounding to nearest; a number stands for itself."""
    if not isinstance(dtype, torch.dtype):
        return dtype
    return torch.finfo(dtype).eps / 2
