"""What is right for the fused head: a float64 reference, tile by tile, and the error allowed.

How far a right result may be off is taken from a run of its own: plain PyTorch in float32, with the
numbers rounded that the precision rounds. Its distance from float64 is what the precision costs,
without any analysis of a softmax; a provider may be a few times as far off. It shares no kernel
with what it judges but PyTorch's float32 operations.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

import kpnops
from bench.cases import BACKWARD, FORWARD, as_dtype
from bench.head_cases import BF16, IEEE, TF32, HeadCase, HeadTensors
from bench.head_operations import matrix_precision
from bench.oracle import RESULT, Index, WrongResultError, unit_roundoff

HEAD_GRADIENTS = ("grad features", "grad weight", "grad bias", "grad input")
# One float64 copy of a tile's unfolded input and its logits; the reference holds several. Halos are
# small beside such tiles on a GPU: at K = 21 with 64 channels a sixth of the side.
TILE_BYTES = {"cpu": 128 * 2**20, "cuda": 4 * 2**30}
SUMS = HEAD_GRADIENTS[1:3]  # over all pixels
# How many times further off than the run in low precision a whole tensor, and its worst element,
# may be: other orders of summation, roundings at other places, other elements hit.
NORM_SLACK = 4.0
ELEMENT_SLACK = 8.0
# tf32 keeps 10 bits behind the point of float32's 23, and hardware cuts off the others.
_CUT_BITS = 13


class HeadTile(NamedTuple):
    """A part of one tensor of the oracle."""

    tensor: str  # RESULT or one of HEAD_GRADIENTS
    index: Index  # where the part lies
    expected: Tensor  # float64
    deviation_norm: float  # of the run in low precision
    deviation_peak: float


@dataclass
class _Comparison:
    """Running sums over the tiles of one tensor."""

    squares: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("error", "deviation", "expected"), 0.0)
    )
    peaks: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("error", "deviation", "expected"), 0.0)
    )

    def add(self, name: str, square: float, peak: float) -> None:
        self.squares[name] += square
        self.peaks[name] = max(self.peaks[name], peak)


def head_oracle_tiles(case: HeadCase, tensors: HeadTensors, pass_name: str) -> Iterator[HeadTile]:
    """Yield the result and, if asked for, all gradients in float64, tile by tile.

    A tile of pixels comes with a halo of the filter's reach: what a pixel's gradient of the input
    collects, and what its result reads, lies within it.

    Args:
        case: the problem.
        tensors: its tensors.
        pass_name: one of `cases.PASSES`.

    Yields:
        The tiles; sums over all pixels are one tile each and come last.
    """
    wanted = head_outputs(pass_name)
    totals: dict[str, list[Tensor]] = {}
    side = tile_side(case, tensors.input.device)
    for image in range(case.batch):
        for top in range(0, case.height, side):
            for left in range(0, case.width, side):
                core = (slice(top, top + side), slice(left, left + side))
                exact, rough = (
                    _tile(case, tensors, pass_name, image, core, low) for low in (False, True)
                )
                index = (slice(image, image + 1), slice(None), *core)
                for name in wanted:
                    pair = [exact[name], rough[name].double()]
                    if name in SUMS:
                        before = totals.get(name, [torch.zeros_like(part) for part in pair])
                        totals[name] = [a + b for a, b in zip(before, pair, strict=True)]
                    else:
                        yield _head_tile(name, index, *pair)
    for name, pair in totals.items():
        yield _head_tile(name, (slice(None),), *pair)


def tile_side(case: HeadCase, device: torch.device) -> int:
    """Return the rows and columns of a tile that fits into TILE_BYTES with its halo."""
    pixels = TILE_BYTES[device.type] // (8 * (case.channels + 1) * case.taps)
    return max(16, math.isqrt(pixels) - 2 * (case.kernel_size // 2))


def head_outputs(pass_name: str) -> tuple[str, ...]:
    """Return what a call of the pass returns."""
    if pass_name == FORWARD:
        return (RESULT,)
    return HEAD_GRADIENTS if pass_name == BACKWARD else (RESULT, *HEAD_GRADIENTS)


def _head_tile(name: str, index: Index, exact: Tensor, rough: Tensor) -> HeadTile:
    deviation = rough - exact
    return HeadTile(name, index, exact, deviation.norm().item(), deviation.abs().max().item())


def _tile(
    case: HeadCase, tensors: HeadTensors, pass_name: str, image: int, core: Index, low: bool
) -> dict[str, Tensor]:
    """Return result and gradients on one tile; of sums the tile's share."""
    halo = case.kernel_size // 2
    slab = tuple(slice(max(0, axis.start - halo), axis.stop + halo) for axis in core)
    inner = (
        slice(None),
        slice(None),
        *(
            slice(axis.start - outer.start, axis.stop - outer.start)
            for axis, outer in zip(core, slab, strict=True)
        ),
    )
    dtype, mode = (torch.float32, case.mode) if low else (torch.float64, None)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[image : image + 1, :, slab[0], slab[1]].to(dtype)

    features, weight = (
        _rounded(tensor, mode, matrix=True)
        for tensor in (cut(tensors.features), tensors.weight.to(dtype))
    )
    with matrix_precision(IEEE):
        logits = torch.einsum("kf,bfhw->bkhw", weight, features)
        logits = _rounded(logits + tensors.bias.to(dtype)[:, None, None], mode)
        differentiable = pass_name != FORWARD
        logits.requires_grad_(differentiable)
        picture = cut(tensors.input).requires_grad_(differentiable)
        filters = logits.softmax(1)
        # Rounded for the product; its gradient goes through as if it were not.
        filters = filters + (_rounded(filters, mode) - filters).detach()
        result = kpnops.reference.decoupled_filter(picture, filters, kernel_size=case.kernel_size)
        values = {RESULT: result.detach()[inner]}
        if not differentiable:
            return values
        grad_logits, grad_input = torch.autograd.grad(
            result, (logits, picture), cut(tensors.cotangent)
        )
        grad_logits = _rounded(grad_logits[inner], mode, matrix=True)
        return values | {
            HEAD_GRADIENTS[0]: torch.einsum("kf,bkhw->bfhw", weight, grad_logits),
            HEAD_GRADIENTS[1]: torch.einsum("bkhw,bfhw->kf", grad_logits, features[inner]),
            HEAD_GRADIENTS[2]: grad_logits.sum((0, 2, 3)),
            HEAD_GRADIENTS[3]: grad_input[inner],
        }


def _rounded(tensor: Tensor, mode: str | None, matrix: bool = False) -> Tensor:
    """Return a tensor as a mode keeps it, of float32; factors of products on matrix units too."""
    if mode == BF16:
        return tensor.detach().bfloat16().to(tensor.dtype)
    if mode == TF32 and matrix:
        bits = tensor.detach().contiguous().view(torch.int32)
        return (bits >> _CUT_BITS << _CUT_BITS).view(torch.float32)
    return tensor.detach()


def check_head(
    case: HeadCase,
    outputs: tuple[Tensor, ...],
    tiles: Iterator[HeadTile] | list[HeadTile],
    pass_name: str,
) -> float:
    """Compare a provider's outputs with the oracle, as whole tensors and at the worst element.

    Args:
        case: the problem.
        outputs: what a call of the pass returns, in the order of `head_outputs`.
        tiles: the oracle's.
        pass_name: one of `cases.PASSES`.

    Returns:
        The largest error as a multiple of its budget, at most 1.

    Raises:
        WrongResultError: a shape or data type differs, a value is not finite, or an error exceeds
            its budget.
    """
    named = dict(zip(head_outputs(pass_name), outputs, strict=True))
    _check_form(case, named)
    comparisons = {name: _Comparison() for name in named}
    for tile in tiles:
        comparison = comparisons[tile.tensor]
        error = (named[tile.tensor][tile.index].double() - tile.expected).abs()
        if not error.isfinite().all():
            raise WrongResultError(f"{tile.tensor}: not all values are finite")
        comparison.add("error", error.square().sum().item(), error.max().item())
        comparison.add("deviation", tile.deviation_norm**2, tile.deviation_peak)
        comparison.add(
            "expected", tile.expected.square().sum().item(), tile.expected.abs().max().item()
        )
    return max(_judge(case, name, comparison) for name, comparison in comparisons.items())


def _judge(case: HeadCase, name: str, comparison: _Comparison) -> float:
    """Return the larger of both errors as multiples of their budgets."""
    unit = unit_roundoff(as_dtype(case.dtype))
    # A float32 sum of n independent terms: after i of them it has sqrt(i / n) of its final norm.
    terms = case.pixels if name in SUMS else max(case.taps, case.features)
    unit += unit_roundoff(torch.float32) * math.sqrt(terms / 2 + 3)
    worst = 0.0
    for what, values, slack in (
        ("norm", {k: math.sqrt(v) for k, v in comparison.squares.items()}, NORM_SLACK),
        ("worst element", comparison.peaks, ELEMENT_SLACK),
    ):
        budget = slack * (values["deviation"] + unit * values["expected"])
        ratio = values["error"] / budget if values["error"] else 0.0
        if not ratio <= 1:
            raise WrongResultError(
                f"{name}: the error's {what} is {ratio:.3g} times its budget, "
                f"{slack:g} times that of a run in {case.mode}"
            )
        worst = max(worst, ratio)
    return worst


def _check_form(case: HeadCase, named: dict[str, Tensor]) -> None:
    """Raise WrongResultError where an output has not the shape and data type of its definition."""
    image = (case.batch, case.channels, case.height, case.width)
    shapes = {
        RESULT: image,
        HEAD_GRADIENTS[0]: (case.batch, case.features, case.height, case.width),
        HEAD_GRADIENTS[1]: (case.taps, case.features),
        HEAD_GRADIENTS[2]: (case.taps,),
        HEAD_GRADIENTS[3]: image,
    }
    for name, actual in named.items():
        form, expected = (tuple(actual.shape), actual.dtype), (shapes[name], as_dtype(case.dtype))
        if form != expected:
            raise WrongResultError(f"{name}: expected shape and dtype {expected}, got {form}")
