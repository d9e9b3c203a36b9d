"""torch.func and forward mode, nested in each other, against the same transforms of the
reference."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import kpnops
from tests.helpers import INTERPRETED, Case

# PyTorch's own: the transforms import modules of it that use torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

SMALL = Case(channels=2, size=(2, 3), kernel_size=(2, 2))
CASES = {
    "gains": SMALL,
    "gains, added, one for the batch": Case(
        2, 2, (2, 3), (2, 2), combine="add", channel_batch=1, padding_mode="replicate"
    ),
    "per image": Case(2, 2, (2, 3), (2, 2), channel_filter="image", channel_batch=1),
    "per image, added, strided": Case(
        1, 2, (3, 4), (2, 2), channel_filter="image", combine="add", stride=(2, 2)
    ),
    "none, grouped": Case(1, 4, (2, 3), (1, 3), groups=2, channel_filter="none"),
    "softmax": Case(1, 2, (2, 3), (2, 2), normalize="softmax"),
    "softmax, added, grouped": Case(
        1, 2, (2, 3), (1, 3), groups=2, normalize="softmax", combine="add"
    ),
    "upsampling": Case(1, 2, (2, 2), (2, 2), scale_factor=2, channel_filter="none"),
    "mixing": Case(2, 2, (2, 3), (2, 2), channel_filter="mix", output_channels=3, channel_batch=1),
    "channel filter alone": Case(1, 2, (3, 2), (2, 2), spatial=False, channel_filter="image"),
}
# Every operator call costs seconds in the interpreter, and what is transformed there is the same.
SOME = ["gains"] if INTERPRETED else list(CASES)
FEW = ["gains"] if INTERPRETED else ["gains, added, one for the batch", "per image", "softmax"]


class Problem:
    """A case as functions of the tensors that are there, with directions to differentiate along."""

    def __init__(self, name: str, device: str) -> None:
        case = CASES[name]
        self.case = case
        operands = case.operands(device)
        self.there = [index for index, tensor in enumerate(operands) if tensor is not None]
        self.tensors = tuple(operands[index] for index in self.there)
        self.directions = tuple(map(torch.randn_like, self.tensors))
        self.every = tuple(range(len(self.tensors)))

    def function(self, operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            arguments: list[Tensor | None] = [None, None, None]
            for index, tensor in zip(self.there, tensors, strict=True):
                arguments[index] = tensor
            return operator(*arguments, **self.case.options)

        return call

    def loss(self, operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        function = self.function(operator)
        return lambda *tensors: function(*tensors).sin().sum()  # no derivative of it is zero


def assert_same_as_reference(run: Callable[[Callable[..., Tensor]], Any]) -> None:
    actual, expected = run(kpnops.decoupled_filter), run(kpnops.reference.decoupled_filter)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", SOME)
def test_reverse_mode(name: str, device: str) -> None:
    problem = Problem(name, device)
    assert_same_as_reference(
        lambda operator: grad(problem.loss(operator), problem.every)(*problem.tensors)
    )

    def pulled_back(operator: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        output, pull_back = vjp(problem.function(operator), *problem.tensors)
        return pull_back(output.detach())

    assert_same_as_reference(pulled_back)


@pytest.mark.parametrize("name", SOME)
def test_forward_mode(name: str, device: str) -> None:
    problem = Problem(name, device)
    assert_same_as_reference(
        lambda operator: jvp(problem.function(operator), problem.tensors, problem.directions)
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", FEW)
def test_dual_numbers(name: str, requires_grad: bool, device: str) -> None:
    """Forward mode without torch.func, one tensor at a time: the others have no tangent."""
    problem = Problem(name, device)
    forward_ad = torch.autograd.forward_ad
    for index in problem.every:
        point = problem.tensors[index].clone().requires_grad_(requires_grad)

        def tangent(operator: Callable[..., Tensor], index=index, point=point) -> Tensor:
            tensors = list(problem.tensors)
            with forward_ad.dual_level():
                tensors[index] = forward_ad.make_dual(point, problem.directions[index])
                output = problem.function(operator)(*tensors)
                return forward_ad.unpack_dual(output).tangent.detach()

        assert_same_as_reference(tangent)


@pytest.mark.parametrize("transform", [jacrev] if INTERPRETED else [jacrev, jacfwd, hessian])
@pytest.mark.parametrize("name", FEW)
def test_jacobians(name: str, transform: Callable, device: str) -> None:
    problem = Problem(name, device)
    what = problem.loss if transform is hessian else problem.function
    assert_same_as_reference(
        lambda operator: transform(what(operator), problem.every)(*problem.tensors)
    )


def gradient_norm(loss: Callable[..., Tensor], every: Sequence[int]) -> Callable[..., Tensor]:
    return lambda *tensors: sum(part.sin().sum() for part in grad(loss, every)(*tensors))


@pytest.mark.parametrize("name", SOME)
def test_second_order(name: str, device: str) -> None:
    """Reverse over reverse, forward over reverse: a tangent that is dropped would show."""
    problem = Problem(name, device)

    def reverse_over_reverse(operator: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        penalty = gradient_norm(problem.loss(operator), problem.every)
        return grad(penalty, problem.every)(*problem.tensors)

    def forward_over_reverse(operator: Callable[..., Tensor]) -> tuple:
        gradients = grad(problem.loss(operator), problem.every)
        return jvp(gradients, problem.tensors, problem.directions)

    assert_same_as_reference(reverse_over_reverse)
    assert_same_as_reference(forward_over_reverse)


class Counter(TorchDispatchMode):
    """Counts the calls of the package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.namespace == "kpnops"
        return func(*args, **(kwargs or {}))


def mapped(problem: Problem, in_dims: Sequence[int | None]) -> list[Tensor]:
    """Three versions of the tensors that are mapped, along the dimensions given."""
    return [
        tensor if dim is None else torch.stack([tensor, tensor + 1, 2 * tensor], dim)
        for tensor, dim in zip(problem.tensors, in_dims, strict=True)
    ]


def ways_to_map(problem: Problem) -> list[tuple[int | None, ...]]:
    count = len(problem.tensors)
    one_each = [tuple(0 if i == j else None for j in range(count)) for i in range(count)]
    return [(0,) * count, tuple(range(count)), *one_each]


@pytest.mark.parametrize("name", SOME)
def test_vmap_is_one_call(name: str, device: str) -> None:
    problem = Problem(name, device)
    for in_dims in ways_to_map(problem):
        tensors = mapped(problem, in_dims)
        with Counter() as counter:
            actual = vmap(problem.function(kpnops.decoupled_filter), in_dims)(*tensors)
        assert counter.calls == 1  # a batching rule, no loop
        expected = vmap(problem.function(kpnops.reference.decoupled_filter), in_dims)(*tensors)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", SOME)
def test_gradients_per_sample(name: str, device: str) -> None:
    problem = Problem(name, device)
    for in_dims in ways_to_map(problem):
        tensors = mapped(problem, in_dims)
        with Counter() as counter:
            vmap(grad(problem.loss(kpnops.decoupled_filter), problem.every), in_dims)(*tensors)
        assert counter.calls == 2
        assert_same_as_reference(
            lambda operator, in_dims=in_dims, tensors=tensors: vmap(
                grad(problem.loss(operator), problem.every), in_dims
            )(*tensors)
        )


@pytest.mark.parametrize("name", FEW)
def test_vmap_within_vmap_and_under_autograd(name: str, device: str) -> None:
    problem = Problem(name, device)
    count = len(problem.tensors)
    outer, inner = (0, *[None] * (count - 1)), (None, *[0] * (count - 1))
    tensors = mapped(problem, (0,) * count)

    def nested(operator: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        function = vmap(vmap(problem.function(operator), inner), outer)
        output = function(*leaves)
        return [output, *torch.autograd.grad(output.sin().sum(), leaves)]

    assert_same_as_reference(nested)


def test_vmap_over_nothing(device: str) -> None:
    """torch.vmap itself refuses an empty dimension; a batch of none inside it is fine."""
    tensors = [
        tensor[:0].expand(3, *tensor[:0].shape) for tensor in Problem("gains", device).tensors
    ]
    assert vmap(kpnops.decoupled_filter)(*tensors).shape == (3, 0, 2, 2, 3)


def test_batched_cotangents(device: str) -> None:
    """What functional.jacobian(vectorize=True) does: vmap over the backward alone."""
    problem = Problem("gains", device)
    leaves = [tensor.requires_grad_() for tensor in problem.tensors]
    output = problem.function(kpnops.decoupled_filter)(*leaves)
    cotangents = torch.randn(3, *output.shape, dtype=output.dtype, device=output.device)
    actual = torch.autograd.grad(
        output, leaves, cotangents, is_grads_batched=True, retain_graph=True
    )
    one_by_one = [torch.autograd.grad(output, leaves, c, retain_graph=True) for c in cotangents]
    for index, tensor in enumerate(actual):
        torch.testing.assert_close(tensor, torch.stack([grads[index] for grads in one_by_one]))


# ------------------------------------------------------------- transforms and torch.compile


def right_or_refused(run: Callable[[], Tensor], expected: Tensor) -> None:
    """What a compiler makes of a transform may be refused; what it returns must be right."""
    try:
        actual = run()
    except (NotImplementedError, RuntimeError):
        return
    torch.testing.assert_close(actual, expected)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", FEW)
def test_compiled_transforms(name: str, device: str) -> None:
    problem = Problem(name, device)
    function = problem.function(kpnops.decoupled_filter)
    loss = problem.loss(kpnops.decoupled_filter)
    first, direction = problem.tensors[0], problem.directions[0]

    def of_the_first(call: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: call(x, *problem.tensors[1:])

    def compiled(call: Callable) -> Callable:
        return torch.compile(call, backend="aot_eager")

    def along(call: Callable) -> Callable:
        return lambda x: jvp(call, (x,), (direction,))[1]

    expected = along(of_the_first(function))(first)
    right_or_refused(lambda: compiled(along(of_the_first(function)))(first), expected)
    right_or_refused(lambda: along(compiled(of_the_first(function)))(first), expected)
    expected = grad(of_the_first(loss))(first)
    right_or_refused(lambda: compiled(grad(of_the_first(loss)))(first), expected)
    right_or_refused(lambda: grad(compiled(of_the_first(loss)))(first), expected)
    batch = torch.stack([first, 2 * first])
    expected = vmap(of_the_first(function))(batch)
    right_or_refused(lambda: compiled(vmap(of_the_first(function)))(batch), expected)
    right_or_refused(lambda: vmap(compiled(of_the_first(function)))(batch), expected)
