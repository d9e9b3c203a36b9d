"""The helpers must be able to fail: what they should notice is put in front of them."""

import math

import numpy as np
import pytest
import torch

import kpnops
from tests.helpers import (
    FLOAT64_BUDGET,
    LAYOUTS,
    Budget,
    Case,
    Expected,
    arrange,
    check,
    compare,
    embed,
    expected_results,
    has_promised_format,
    relative_errors,
    source_index,
)


def exactly(value: np.ndarray, budget: Budget = FLOAT64_BUDGET) -> Expected:
    return Expected(value, np.abs(value), budget)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("replicate", [0, 0, 0, 0, 1, 2, 2, 2]),
        ("circular", [0, 1, 2, 0, 1, 2, 0, 1]),
        ("zeros", [None, None, None, 0, 1, 2, None, None]),
    ],
)
def test_source_index(mode: str, expected: list[int | None]) -> None:
    assert [source_index(position, 3, mode) for position in range(-3, 5)] == expected


def test_source_index_reflects_once() -> None:
    assert [source_index(position, 3, "reflect") for position in range(-2, 5)] == [
        2, 1, 0, 1, 2, 1, 0,
    ]  # fmt: skip
    for position in (-3, 5):
        with pytest.raises(ValueError, match="beyond one reflection"):
            source_index(position, 3, "reflect")
    assert source_index(0, 1, "reflect") == 0


def test_source_index_refuses_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        source_index(-1, 3, "symmetric")


def test_relative_errors_measures_against_the_terms() -> None:
    errors = relative_errors(np.array([1.0, 2.5]), np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert errors == Budget(0.1, 0.125)
    assert relative_errors(np.array([1e-3]), np.array([0.0]), np.array([0.0])).maximum == math.inf


def test_compare_accepts_what_is_inside_and_reports_what_is_not() -> None:
    value = np.array([1.0, -2.0, 4.0])
    inside = compare(torch.tensor(value * (1 + 1e-12)), exactly(value), "x")
    assert 0 < inside.relative_l2 <= FLOAT64_BUDGET.relative_l2
    wrong = torch.tensor(value)
    wrong[1] += 1e-8  # one element of three
    with pytest.raises(AssertionError, match=r"x: relative L2 .* maximum 5e-09 at \(1,\)"):
        compare(wrong, exactly(value), "x")


@pytest.mark.parametrize("sign", [-1, 1])
def test_compare_is_two_sided(sign: int) -> None:
    # DDF's gradient check takes no absolute value: any gradient that is too small passes.
    value = np.array([1.0, -2.0, 4.0])
    for index in range(3):
        wrong = torch.tensor(value)
        wrong[index] += sign * 1e-8
        with pytest.raises(AssertionError, match="x: relative L2"):
            compare(wrong, exactly(value), "x")


def test_compare_sees_shape_nan_and_inf() -> None:
    value = np.array([1.0, math.nan, math.inf])
    compare(torch.tensor(value), exactly(value), "x")
    for wrong, message in [
        ([1.0, 1.0, math.inf], "NaN or not differs at"),
        ([1.0, math.nan, math.nan], "NaN or not differs at"),
        ([1.0, math.nan, -math.inf], "inf or not differs at"),
        ([1.0, math.nan], r"shape \(2,\), not \(3,\)"),
    ]:
        with pytest.raises(AssertionError, match=message):
            compare(torch.tensor(wrong, dtype=torch.float64), exactly(value), "x")


def test_compare_can_take_any_value_that_is_not_finite() -> None:
    value = np.array([1.0, math.nan])
    compare(torch.tensor([1.0, math.inf]).double(), exactly(value), "x", infinite_or_nan=True)
    with pytest.raises(AssertionError, match="finite or not differs at"):
        compare(torch.tensor([1.0, 0.0]).double(), exactly(value), "x", infinite_or_nan=True)


def test_compare_knows_the_range_of_the_format() -> None:
    beyond = exactly(np.array([1e6, 1e-9]), Budget(0, 0))  # largest float16: 65504; smallest: 6e-8
    compare(torch.tensor([math.inf, 0.0], dtype=torch.float16), beyond, "x")
    with pytest.raises(AssertionError, match="inf or not"):
        compare(torch.tensor([65504.0, 0.0], dtype=torch.float16), beyond, "x")


def test_compare_lets_subnormal_numbers_go() -> None:
    tiny = exactly(np.array([1e-39, 1.0]), Budget(0, 0))
    compare(torch.tensor([0.0, 1.0]), tiny, "x")
    with pytest.raises(AssertionError, match="maximum"):
        compare(torch.tensor([2e-38, 1.0]), tiny, "x")


def wrong_operator(*operands: torch.Tensor, **_: object) -> torch.Tensor:
    return operands[0] * operands[1][:, :1] + operands[2]


def test_check_fails_for_a_wrong_operator() -> None:
    case = Case()
    with pytest.raises(AssertionError, match="output: relative L2"):
        check(wrong_operator, case, case.operands(), case.cotangent())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_budgets_follow_the_format(dtype: torch.dtype) -> None:
    case = Case().with_dtype(dtype)
    unit = torch.finfo(dtype).eps / 2
    single = torch.finfo(torch.float32).eps / 2
    for expected in expected_results(case, case.operands(), case.cotangent()).values():
        # Rounding the result is allowed, and float32 sums of 9 taps and 3 channels: not one step
        # in the narrow format more (two of them would be 2 units).
        assert unit < expected.budget.maximum < unit + ORDER_OF_A_SUM * single


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_budgets_under_softmax(dtype: torch.dtype) -> None:
    # Logits of a normal distribution: a few steps of rounding more for their differences, and still
    # none of the narrow format.
    case = Case(normalize="softmax").with_dtype(dtype)
    unit = torch.finfo(dtype).eps / 2
    single = torch.finfo(torch.float32).eps / 2
    for expected in expected_results(case, case.operands(), case.cotangent()).values():
        assert unit < expected.budget.maximum < unit + 100 * single


def test_budgets_under_softmax_grow_with_what_is_far_below() -> None:
    case = Case(normalize="softmax").with_dtype(torch.float32)
    operands = case.operands()
    budgets = []
    for scale in (1, 10, 1e4):
        scaled = operands._replace(spatial_filter=operands.spatial_filter * scale)
        expected = expected_results(case, scaled, case.cotangent())
        budgets.append(expected["output"].budget.maximum)
    assert budgets[0] < budgets[1]
    # exp(-88) and less is nothing: the rounding of a difference of 88 is all there is
    assert budgets[2] < 4 * 3 * (1 + 2 * 88) * torch.finfo(torch.float32).eps / 2


def test_a_softmax_that_is_wrong_is_noticed() -> None:
    case = Case(normalize="softmax", channel_filter="none").with_dtype(torch.float32)
    operands, cotangent = case.operands(), case.cotangent()

    def wrong(image: torch.Tensor, logits: torch.Tensor, *_: object, **options) -> torch.Tensor:
        weights = logits.bfloat16().softmax(1).float()  # rounded once too often
        return kpnops.reference.decoupled_filter(image, weights, **options | {"normalize": None})

    with pytest.raises(AssertionError, match="output: relative L2"):
        check(wrong, case, operands, cotangent)


def test_check_of_some_gradients() -> None:
    case = Case()
    operands, cotangent = case.operands(), case.cotangent()
    needs_grad = (False, True, False)
    actual = check(
        kpnops.reference.decoupled_filter, case, operands, cotangent, needs_grad=needs_grad
    )
    assert list(actual) == ["output", "grad_spatial_filter"]


ORDER_OF_A_SUM = 4 * (9 * 3 * 5 * 7 + 3)  # four times (terms of the longest sum + factors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 9)], ids=["4-D", "3-D"])
def test_arrange_keeps_values_and_changes_strides(layout: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    arranged = arrange(tensor, layout)
    assert arranged.shape == tensor.shape
    if layout == "expanded":
        assert arranged.stride(0) == arranged.stride(-1) == 0
    else:
        assert torch.equal(arranged, tensor)
        assert arranged.is_contiguous() == (layout == "contiguous")


def test_embed_surrounds_with_nan() -> None:
    tensor = torch.randn(2, 3, 4)
    view, buffer = embed(tensor)
    assert torch.equal(view, tensor)
    assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    assert int(buffer.isfinite().sum()) == tensor.numel()
    assert view.storage_offset() > 0


def test_has_promised_format() -> None:
    contiguous = torch.randn(2, 4, 5, 6)
    last = contiguous.contiguous(memory_format=torch.channels_last)
    assert has_promised_format(contiguous, contiguous)
    assert has_promised_format(last, last)
    assert not has_promised_format(last, contiguous)
    assert not has_promised_format(contiguous, last)
    assert has_promised_format(contiguous, contiguous.mT)
    one_channel = torch.randn(2, 1, 5, 6).contiguous(memory_format=torch.channels_last)
    assert has_promised_format(torch.randn(2, 1, 5, 6), one_channel)  # both formats at once


def test_poisoned_allocations(poisoned_allocations: None) -> None:
    assert torch.empty(7).isnan().all()


def test_guarded_allocations_see_a_store_outside(guarded_allocations) -> None:
    inside = torch.empty(2, 3)
    inside.fill_(1)
    guarded_allocations.check()
    assert len(guarded_allocations.blocks) == 1
    like = torch.empty_like(inside.mT)
    assert like.stride() == (1, 3)
    like.as_strided((7,), (1,), like.storage_offset())[6] = 0
    with pytest.raises(AssertionError, match="outside a block of 6 elements"):
        guarded_allocations.check()
