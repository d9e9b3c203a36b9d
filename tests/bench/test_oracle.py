"""The oracle: tiles agree with the whole, wrong results are refused, right ones are not."""

from dataclasses import replace

import pytest
import torch

import bench.oracle
import kpnops
from bench.cases import (
    BACKWARD,
    CHANNEL_FILTERS,
    FORWARD,
    FORWARD_BACKWARD,
    GPU_DTYPES,
    SOFTMAX,
    Case,
    make_tensors,
)
from bench.operations import OperationCall, slices_operation
from bench.oracle import (
    GRADIENTS,
    RESULT,
    WrongResultError,
    check,
    oracle_tiles,
    unit_roundoff,
)

CPU = torch.device("cpu")
# Not multiples of the tiles' sides, and more than one tile each way where tiles are smallest.
CASES = [Case(2, 3, 41, 37, 5, channel_filter) for channel_filter in CHANNEL_FILTERS]
CASE_IDS = list(CHANNEL_FILTERS)


def exact_outputs(case, tensors):
    """Result and gradients of the reference in float64, computed at once."""
    arguments = [argument.double().requires_grad_() for argument in tensors.arguments]
    result = kpnops.reference.decoupled_filter(*arguments, kernel_size=case.kernel_size)
    gradients = torch.autograd.grad(result, arguments, tensors.cotangent.double())
    return result.detach(), *gradients


def rounded_outputs(case, tensors):
    """The exact outputs, rounded once to the types that the case asks for."""
    types = [tensors.cotangent.dtype, *(argument.dtype for argument in tensors.arguments)]
    exact = exact_outputs(case, tensors)
    return [output.to(dtype) for output, dtype in zip(exact, types, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
@pytest.mark.parametrize("tile_bytes", [1, 2**30], ids=["small tiles", "one tile"])
def test_tiles_cover_the_whole_exactly_once(case, tile_bytes, monkeypatch):
    monkeypatch.setitem(bench.oracle.TILE_BYTES, "cpu", tile_bytes)
    tensors = make_tensors(case, CPU)
    expected = dict(zip((RESULT, *GRADIENTS), exact_outputs(case, tensors), strict=True))
    actual = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    visits = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    tiles = list(oracle_tiles(case, tensors, FORWARD_BACKWARD))
    for tile in tiles:
        actual[tile.tensor][tile.index] += tile.expected
        visits[tile.tensor][tile.index] += 1
        assert (tile.magnitude >= tile.expected.abs() * (1 - 1e-12)).all()
    for name in expected:
        assert (visits[name] == 1).all(), name
        # Both are float64: only the order of at most H*W additions differs.
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=1e-12)
    assert (len(tiles) > 20) == (tile_bytes == 1)


def test_forward_tiles_hold_no_gradients():
    case = CASES[1]
    tiles = oracle_tiles(case, make_tensors(case, CPU), FORWARD)
    assert {tile.tensor for tile in tiles} == {RESULT}


@pytest.mark.parametrize("channel_filter", CHANNEL_FILTERS)
@pytest.mark.parametrize("dtypes", GPU_DTYPES, ids="+".join)
def test_correctly_rounded_outputs_pass(channel_filter, dtypes):
    case = Case(1, 4, 24, 24, 3, channel_filter, *dtypes)
    tensors = make_tensors(case, CPU)
    tiles = oracle_tiles(case, tensors, FORWARD_BACKWARD)
    error = check(case, tuple(rounded_outputs(case, tensors)), tiles, torch.float32)
    # One rounding is less than its own budget, and not nothing.
    assert 0 < error <= 1


def drop_last_row(outputs):
    outputs[0][:, :, -1] = 0


def forget_a_pixel(outputs):
    outputs[0][0, 1, 20, 20] += 1e-4 * outputs[0].abs().max()


def shift_the_input_gradient(outputs):
    outputs[1] = outputs[1].roll(1, dims=3)


def zero_a_gradient(outputs):
    outputs[2] = torch.zeros_like(outputs[2])


def scale_a_gradient(outputs):
    outputs[3] *= 1 + 1e-5


def leave_a_nan(outputs):
    outputs[3].view(-1)[5] = torch.nan


def give_another_type(outputs):
    outputs[1] = outputs[1].double()


def give_another_shape(outputs):
    outputs[0] = outputs[0][:, :, :-1]


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (drop_last_row, "result"),
        (forget_a_pixel, "result"),
        (shift_the_input_gradient, "grad input"),
        (zero_a_gradient, "grad spatial_filter"),
        (scale_a_gradient, "grad channel_filter"),
        (leave_a_nan, "grad channel_filter"),
        (give_another_type, "grad input"),
        (give_another_shape, "result"),
    ],
)
def test_wrong_outputs_are_refused_and_named(case, harm, named):
    tensors = make_tensors(case, CPU)
    tiles = list(oracle_tiles(case, tensors, FORWARD_BACKWARD))
    outputs = rounded_outputs(case, tensors)
    check(case, tuple(outputs), tiles, torch.float32)
    harm(outputs)
    with pytest.raises(WrongResultError, match=f"^{named}: "):
        check(case, tuple(outputs), tiles, torch.float32)


def test_sums_in_bfloat16_fail_where_float32_is_promised():
    case = Case(1, 4, 32, 32, 5, "pixel", "bfloat16", "bfloat16")
    tensors = make_tensors(case, CPU)
    tiles = list(oracle_tiles(case, tensors, FORWARD))
    outputs = OperationCall(slices_operation(case), FORWARD, tensors)()
    assert check(case, outputs, tiles, torch.bfloat16) <= 1
    with pytest.raises(WrongResultError, match=r"^result: "):
        check(case, outputs, tiles, torch.float32)


def test_a_zero_result_fails_in_bfloat16_with_many_taps():
    # The elementwise budget alone would admit it: 441 roundings of 2^-8 of the sum of absolutes.
    case = Case(1, 3, 32, 32, 21, "pixel", "bfloat16", "bfloat16")
    tensors = make_tensors(case, CPU)
    tiles = oracle_tiles(case, tensors, FORWARD)
    with pytest.raises(WrongResultError, match=r"^result: "):
        check(case, (torch.zeros_like(tensors.cotangent),), tiles, torch.bfloat16)


def outputs_with_softmax(case, tensors, softmax):
    """Result and gradients in float32 after a softmax written out."""
    arguments = [argument.clone().requires_grad_() for argument in tensors.arguments]
    plain = slices_operation(replace(case, normalize=None))
    result = plain(arguments[0], softmax(arguments[1]), arguments[2])
    return result.detach(), *torch.autograd.grad(result, arguments, tensors.cotangent)


@pytest.mark.parametrize("channel_filter", CHANNEL_FILTERS)
@pytest.mark.parametrize(
    ("softmax", "named"),
    [
        (lambda logits: logits.softmax(1), None),
        (lambda logits: logits.exp() / logits.exp().sum(1, keepdim=True), None),
        (lambda logits: logits.exp() / logits.exp().sum(1, keepdim=True).detach(), "grad spatial"),
        (lambda logits: (1.00002 * logits).softmax(1), "result"),
        (lambda logits: logits, "result"),
    ],
    ids=["softmax", "by hand", "a term of the gradient is missing", "scaled", "left out"],
)
def test_softmax_is_judged_with_its_gradient(softmax, named, channel_filter):
    case = Case(2, 3, 20, 24, 3, channel_filter, normalize=SOFTMAX)
    tensors = make_tensors(case, CPU)
    tiles = list(oracle_tiles(case, tensors, FORWARD_BACKWARD))
    outputs = outputs_with_softmax(case, tensors, softmax)
    if named is None:
        assert check(case, outputs, tiles, torch.float32) <= 1
        return
    with pytest.raises(WrongResultError, match=named):
        check(case, outputs, tiles, torch.float32)


def test_gradients_alone_are_judged_by_their_names():
    case = Case(1, 3, 20, 24, 3)
    tensors = make_tensors(case, CPU)
    tiles = list(oracle_tiles(case, tensors, BACKWARD))
    assert {tile.tensor for tile in tiles} == set(GRADIENTS)
    _, *gradients = rounded_outputs(case, tensors)
    assert check(case, tuple(gradients), tiles, torch.float32, BACKWARD) <= 1
    gradients[2] = -gradients[2]
    with pytest.raises(WrongResultError, match="grad channel_filter"):
        check(case, tuple(gradients), tiles, torch.float32, BACKWARD)


def test_the_unit_of_a_format_that_is_no_data_type():
    assert unit_roundoff(torch.float32) == 2.0**-24
    assert unit_roundoff(2.0**-16) == 2.0**-16
