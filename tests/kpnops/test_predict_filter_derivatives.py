"""The fused head: finite differences, second derivatives, torch.func, compile, export, opcheck."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

import kpnops
from tests.head_cases import HeadCase
from tests.helpers import COMPILED_ROUTES, INTERPRETED

# PyTorch's own: the transforms import modules of it that use torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

F32 = torch.float32


def tiny(**options) -> HeadCase:
    small = {"features": 2, "channels": 2, "size": (2, 2), "kernel_size": (1, 2)}
    return HeadCase(**(small | {"normalize": "softmax"} | options))


CASES = {
    "gains": tiny(channel_filter="pixel"),
    "gains, no softmax, one for the batch": tiny(
        channel_filter="pixel", normalize=None, batch=2, channel_batch=1
    ),
    "none, groups": tiny(groups=2, bias=False),
    "per image, added": tiny(channel_filter="image", combine="add", padding_mode="replicate"),
    "frames": tiny(frames=2, channel_filter="pixel"),
    "frames, no softmax": tiny(frames=2, normalize=None),
}
SOME = ["gains"] if INTERPRETED else list(CASES)
# What is registered is the same for all of them.
MOST_SLOW = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ("gains", "frames, no softmax")))
    for name in SOME
]
FORWARD = torch.ops.kpnops.predict_filter.default
BACKWARD = torch.ops.kpnops.predict_filter_backward.default


def leaves_of(case: HeadCase, device: str) -> list[Any]:
    return [None if tensor is None else tensor.requires_grad_() for tensor in case.operands(device)]


def function_of(case: HeadCase, operator: Any = None) -> Callable[..., Tensor]:
    """The operator on the tensors that the case has."""
    operator = operator or kpnops.predict_filter
    there = [shape is not None for shape in case.shapes]

    def call(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        return operator(*(next(given) if exists else None for exists in there), **case.options)

    return call


def tensors_of(case: HeadCase, device: str) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in case.operands(device) if tensor is not None)


@pytest.mark.parametrize("name", SOME)
def test_gradcheck(name: str, device: str) -> None:
    case = CASES[name]
    leaves = [leaf for leaf in leaves_of(case, device) if leaf is not None]
    assert torch.autograd.gradcheck(
        function_of(case),
        leaves,
        fast_mode=INTERPRETED,
        check_undefined_grad=not INTERPRETED,  # about autograd, not about kernels, and slow
    )


@pytest.mark.parametrize("name", MOST_SLOW)
def test_gradgradcheck(name: str, device: str) -> None:
    case = CASES[name]
    leaves = [leaf for leaf in leaves_of(case, device) if leaf is not None]
    assert torch.autograd.gradgradcheck(
        function_of(case), leaves, fast_mode=True, check_undefined_grad=not INTERPRETED
    )


def penalties(case: HeadCase, operator: Any, leaves: list[Any]) -> list[Tensor]:
    """Gradients of a penalty on the gradients, where one tensor has been made from another."""
    features, weight, bias, image, channel = leaves
    image = image * features.mean()
    tensors = [tensor for tensor in (features, weight, bias, image, channel) if tensor is not None]
    output = function_of(case, operator)(*tensors)
    there = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(output.square().sum(), there, create_graph=True)
    penalty = sum((gradient.square().sum() for gradient in gradients), output.sum())
    return list(torch.autograd.grad(penalty, there, create_graph=True))


@pytest.mark.parametrize("name", SOME)
def test_gradient_penalty(name: str, device: str) -> None:
    case = CASES[name]
    leaves = leaves_of(case, device)
    actual = penalties(case, kpnops.predict_filter, leaves)
    expected = penalties(case, kpnops.reference.predict_filter, leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)  # the defaults for float64: 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_third_derivative(device: str) -> None:
    case = CASES["gains"]
    assert torch.autograd.gradcheck(
        lambda *operands: penalties(case, kpnops.predict_filter, list(operands)),
        leaves_of(case, device),
        fast_mode=True,
    )


def test_second_derivative_under_autocast(device: str) -> None:
    case = CASES["gains"].with_dtype(F32)
    expected = penalties(case, kpnops.predict_filter, leaves_of(case, device))
    with torch.autocast(device, torch.bfloat16):
        actual = penalties(case, kpnops.predict_filter, leaves_of(case, device))
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


# ----------------------------------------------------------------------------- torch.func, batching


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_transforms(name: str, device: str) -> None:
    case = CASES[name]
    tensors = tensors_of(case, device)
    directions = tuple(map(torch.randn_like, tensors))
    every = tuple(range(len(tensors)))
    results = []
    for operator in (kpnops.predict_filter, kpnops.reference.predict_filter):
        function = function_of(case, operator)

        def loss(*tensors: Tensor, function: Any = function) -> Tensor:
            return function(*tensors).square().sum()

        output, pull = vjp(function, *tensors)
        results.append(
            [
                jvp(function, tensors, directions)[1],
                *pull(torch.ones_like(output)),
                *grad(loss, every)(*tensors),
                jacrev(function, 1)(*tensors),
                hessian(loss, 1)(*tensors),
            ]
        )
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)  # float64


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("mapped", [(0,), (3,), (0, 3), (1, 2), (4,), (0, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["gains", "gains, no softmax, one for the batch", "frames"])
def test_vmap(name: str, mapped: tuple[int, ...], device: str) -> None:
    case = CASES[name]
    operands = list(case.operands(device))
    dims: list[int | None] = [None] * 5
    for index in mapped:
        dims[index] = index % 2 * operands[index].dim()  # in front or behind
        stacked = [operands[index], 2 * operands[index], operands[index] - 1]
        operands[index] = torch.stack(stacked, dims[index])
    results = []
    for operator in (kpnops.predict_filter, kpnops.reference.predict_filter):
        function = function_of(case, operator)

        def loss(*tensors: Tensor, function: Any = function) -> Tensor:
            return function(*tensors).square().sum()

        gradients = vmap(grad(loss, (0, 1, 2, 3, 4)), tuple(dims))(*operands)
        results.append([vmap(function, tuple(dims))(*operands), *gradients])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)  # float64


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_a_batch_of_cotangents(name: str, device: str) -> None:
    case = CASES[name]
    leaves = [leaf for leaf in leaves_of(case, device) if leaf is not None]
    output = function_of(case)(*leaves)
    cotangents = torch.randn(3, *output.shape, dtype=output.dtype, device=device)
    actual = torch.autograd.grad(
        output, leaves, cotangents, is_grads_batched=True, retain_graph=True
    )
    for index, cotangent in enumerate(cotangents):
        expected = torch.autograd.grad(output, leaves, cotangent, retain_graph=True)
        for one, other in zip(actual, expected, strict=True):
            assert torch.equal(one[index], other)


# ---------------------------------------------------------------------------------- compile, export


def forward_and_backward(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    output = function(*leaves)
    generator = torch.Generator(output.device).manual_seed(5)
    cotangent = torch.empty_like(output).detach().normal_(generator=generator)
    return [output, *torch.autograd.grad(output, leaves, cotangent)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    "dynamic",
    [False] if INTERPRETED else [pytest.param(False, marks=pytest.mark.slow), True],
)
@pytest.mark.parametrize("name", MOST_SLOW)
def test_compile(name: str, dynamic: bool, device: str) -> None:
    case = CASES[name].with_dtype(F32)
    function = function_of(case)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((3, 4), (5, 2)):
        sized = replace(case, size=size, features=3, batch=2)
        leaves = [leaf for leaf in leaves_of(sized, device) if leaf is not None]
        actual = forward_and_backward(compiled, leaves)
        expected = forward_and_backward(function, leaves)
        for one, other in zip(actual, expected, strict=True):
            # One operator runs either way, so the bits are the same, and so are the strides.
            assert one.stride() == other.stride()
            assert torch.equal(one, other)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_one_graph_for_all_sizes(device: str) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    case = CASES["gains"].with_dtype(F32)
    compiled = torch.compile(function_of(case), fullgraph=True, dynamic=True, backend=backend)
    # The sizes of the first call differ from each other, since equal ones count as one symbol.
    for batch, features, channels, size in [(3, 5, 4, (11, 15)), (2, 7, 3, (4, 5))]:
        sized = replace(case, batch=batch, features=features, channels=channels, size=size)
        tensors = tensors_of(sized, device)
        assert torch.equal(compiled(*tensors), function_of(case)(*tensors))
    assert len(graphs) == 1


QUICK_CHECKS = [("gains", "channels_last")]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(*check, marks=[pytest.mark.slow] * (check not in QUICK_CHECKS))
        for check in product(SOME, ["contiguous", "channels_last"])
    ],
)
def test_opcheck(name: str, layout: str, device: str) -> None:
    case = replace(CASES[name], size=(3, 4), channels=4).with_dtype(F32)
    leaves = leaves_of(case, device)
    if layout == "channels_last":
        for index in (0, 3):
            if leaves[index].dim() == 4:
                last = leaves[index].detach().contiguous(memory_format=torch.channels_last)
                leaves[index] = last.requires_grad_()
    pair = (list(case.kernel_size), list(case.dilation))
    options = (*pair, case.padding_mode, case.normalize, case.combine, "ieee")
    torch.library.opcheck(FORWARD, (*leaves, *options))
    output, statistics = FORWARD(*leaves, *options)
    needs = [leaf is not None for leaf in leaves]
    cotangent = torch.randn_like(output).requires_grad_()
    # The operators of the second derivative take minutes in the interpreter.
    tests = ("test_schema", "test_faketensor") if INTERPRETED else None
    arguments = (cotangent, *leaves, statistics, *options, needs)
    torch.library.opcheck(BACKWARD, arguments, **({"test_utils": tests} if tests else {}))


class Layer(torch.nn.Module):
    def __init__(self, case: HeadCase) -> None:
        super().__init__()
        self.call = function_of(case)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call(*tensors)


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", ["gains", "frames"])
def test_export(name: str, device: str) -> None:
    case = CASES[name].with_dtype(F32)
    tensors = tensors_of(case, device)
    exported = torch.export.export(Layer(case), tensors).module()
    assert torch.equal(exported(*tensors), Layer(case)(*tensors))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_forward_mode_in_a_compiled_graph_is_right_or_refused(device: str) -> None:
    case = CASES["gains"]
    tensors = tensors_of(case, device)

    def tangent(*tensors: Tensor) -> Tensor:
        return jvp(function_of(case), tensors, tensors)[1]

    try:
        actual = torch.compile(tangent, backend="eager")(*tensors)
    except Exception:  # the compiler's own kinds, which it changes from version to version
        return
    torch.testing.assert_close(actual, tangent(*tensors))
