"""torch.compile, torch.export, opcheck, and the transforms that must be right or refuse."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import kpnops
from tests.helpers import COMPILED_ROUTES, INTERPRETED, Case, Operands, arrange

F32 = torch.float32

# PyTorch's own: inductor and the transforms import modules of it that use torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

CASES = {
    "gains": Case(channels=4, batch=2),
    "per image, one for the batch": Case(channel_filter="image", batch=2, channel_batch=1),
    "none, grouped": Case(channels=6, groups=3, channel_filter="none", batch=2),
    "add, strided, rounded down": Case(combine="add", stride=(2, 3), rounding=("floor", "floor")),
    "dilated, circular, even": Case(dilation=(2, 1), padding_mode="circular", kernel_size=(2, 4)),
    "one tap": Case(channels=2, size=(2, 3), kernel_size=(1, 1)),
    "mixed dtypes": Case(dtypes=(torch.float32, torch.bfloat16, torch.bfloat16)),
}

# What is registered is the same on every route, and opcheck runs an operator dozens of times.
SOME_CASES = ["one tap"] if INTERPRETED else list(CASES)


def typed(name: str) -> Case:
    case = CASES[name]
    return case if name == "mixed dtypes" else case.with_dtype(F32)


def leaves_of(operands: Operands, layout: str = "contiguous") -> list[Tensor]:
    return [
        arrange(tensor, layout).detach().requires_grad_()
        for tensor in operands
        if tensor is not None
    ]


def forward_and_backward(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    output = function(*leaves)
    generator = torch.Generator(output.device).manual_seed(5)
    # A compiled backward copies a gradient into the output's memory format first, which may change
    # the order of a sum: it arrives in that format.
    cotangent = torch.empty_like(output).detach().normal_(generator=generator)
    return [output, *torch.autograd.grad(output, leaves, cotangent)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    # One operator runs either way, so the bits are the same, and so are the strides.
    for one, other in zip(actual, expected, strict=True):
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


class CountingBackend:
    """Counts the graphs that torch.compile makes, and runs them through AOT autograd."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
@pytest.mark.parametrize("name", SOME_CASES)
def test_compile(name: str, layout: str, device: str) -> None:
    case = typed(name)

    def function(*operands: Tensor) -> Tensor:
        return kpnops.decoupled_filter(*operands, **case.options)

    leaves = leaves_of(case.operands(device), layout)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(forward_and_backward(compiled, leaves), forward_and_backward(function, leaves))


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", ["gains", "add, strided, rounded down"])
def test_compile_with_inductor(name: str, device: str) -> None:
    # The default backend plans strides and memory itself: neighbours with permuted layouts check
    # that what the operator promises about its result is what it gives.
    case = typed(name)

    def function(image: Tensor, *filters: Tensor) -> Tensor:
        permuted = (image * 2).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
        output = kpnops.decoupled_filter(permuted, *filters, **case.options)
        last = output.contiguous(memory_format=torch.channels_last)
        once_more = kpnops.decoupled_filter(last, torch.ones_like(output[:, :1]), kernel_size=1)
        return once_more.relu() + once_more

    leaves = leaves_of(case.operands(device))
    actual = forward_and_backward(torch.compile(function, fullgraph=True), leaves)
    expected = forward_and_backward(function, leaves)
    for one, other in zip(actual, expected, strict=True):
        # Fused multiplications by two and sums of two terms do not round differently.
        assert torch.equal(one, other)


@pytest.mark.parametrize("kernel_size", [None] if INTERPRETED else [2, None])
@pytest.mark.parametrize(("stride", "rounding"), [(1, "ceil"), (2, "ceil"), (2, "floor")])
def test_one_graph_for_all_sizes(
    stride: int, rounding: str, kernel_size: int | None, device: str
) -> None:
    backend = CountingBackend()

    def function(*operands: Tensor) -> Tensor:
        return kpnops.decoupled_filter(*operands, kernel_size=kernel_size, stride=stride)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    # The sizes of the first call differ from each other, since equal ones count as one symbol;
    # later ones are odd and even: rounded up or down, or not at all.
    for batch, channels, size in [(2, 3, (11, 15)), (3, 5, (4, 7)), (2, 2, (5, 4))]:
        case = Case(batch, channels, size, (2, 2), stride=(stride,) * 2, rounding=(rounding,) * 2)
        leaves = leaves_of(case.with_dtype(F32).operands(device))
        assert_same(forward_and_backward(compiled, leaves), forward_and_backward(function, leaves))
    assert backend.graphs == 1


def test_one_tensor_twice_under_compile(device: str) -> None:
    def function(x: Tensor) -> Tensor:
        return kpnops.decoupled_filter(x, x, x, kernel_size=1)

    leaves = [torch.randn(1, 3, 4, 5, device=device, requires_grad=True)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(forward_and_backward(compiled, leaves), forward_and_backward(function, leaves))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_compile_with_one_gradient(wanted: int, device: str) -> None:
    leaves = [tensor.detach() for tensor in leaves_of(typed("gains").operands(device))]
    leaves[wanted].requires_grad_()
    compiled = torch.compile(kpnops.decoupled_filter, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (compiled, kpnops.decoupled_filter):
        leaves[wanted].grad = None
        function(*leaves).square().sum().backward()
        gradients.append(leaves[wanted].grad)
    assert all(leaf.grad is None for index, leaf in enumerate(leaves) if index != wanted)
    assert torch.equal(*gradients)


class Layer(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(
        self, image: Tensor, spatial_filter: Tensor, channel_filter: Tensor | None = None
    ) -> Tensor:
        return kpnops.decoupled_filter(image, spatial_filter, channel_filter, **self.case.options)


@pytest.mark.parametrize("name", SOME_CASES)
def test_export(name: str, device: str) -> None:
    case = typed(name)
    operands = tuple(tensor for tensor in case.operands(device) if tensor is not None)
    file = io.BytesIO()
    torch.export.save(torch.export.export(Layer(case), operands), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(*operands), Layer(case)(*operands))


def test_export_with_dynamic_sizes(device: str) -> None:
    case = Case(batch=2, channels=4).with_dtype(F32)
    sizes = {
        0: torch.export.Dim("batch", min=2, max=64),
        2: torch.export.Dim("height", min=2, max=4096),
        3: torch.export.Dim("width", min=2, max=4096),
    }
    exported = torch.export.export(
        Layer(case), tuple(case.operands(device)), dynamic_shapes=(sizes,) * 3
    ).module()
    other = Case(batch=3, channels=4, size=(9, 4)).with_dtype(F32).operands(device)
    assert torch.equal(exported(*other), Layer(case)(*other))


class Recorder(TorchDispatchMode):
    """Notes the operators of the package that run, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "kpnops":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("name", SOME_CASES)
def test_opcheck(name: str, layout: str, device: str) -> None:
    case = typed(name)
    leaves = leaves_of(case.operands(device), layout)
    with Recorder() as recorder:
        forward_and_backward(lambda *x: kpnops.decoupled_filter(*x, **case.options), leaves)
    assert [func for func, _, _ in recorder.calls] == [
        torch.ops.kpnops.decoupled_filter.default,
        torch.ops.kpnops.decoupled_filter_backward.default,
    ]
    (forward, args, kwargs), (backward, backward_args, backward_kwargs) = recorder.calls
    torch.library.opcheck(forward, without_gradients(args), kwargs)
    remaining = iter(leaves)
    tracked = tuple(next(remaining) if torch.is_tensor(arg) else arg for arg in args)
    torch.library.opcheck(forward, tracked, kwargs)
    torch.library.opcheck(backward, without_gradients(backward_args), backward_kwargs)


def without_gradients(arguments: tuple) -> tuple:
    return tuple(arg.detach() if torch.is_tensor(arg) else arg for arg in arguments)


def right_or_refused(run: Callable[[], Tensor], expected: Tensor) -> None:
    """A transform may raise; what it returns must be right."""
    try:
        actual = run()
    except (NotImplementedError, RuntimeError):
        return
    torch.testing.assert_close(actual, expected)


@pytest.fixture
def operands(device: str) -> Operands:
    return Case(channels=3, size=(3, 4), kernel_size=(2, 2)).operands(device)


def forward_derivative(way: str, function: Callable, point: Tensor, tangent: Tensor) -> Tensor:
    if way == "jvp":
        return torch.func.jvp(function, (point,), (tangent,))[1]
    if way == "jvp of a compiled function":
        compiled = torch.compile(function, backend="aot_eager")
        return torch.func.jvp(compiled, (point,), (tangent,))[1]
    if way == "compiled jvp":
        return torch.compile(
            lambda x, step: torch.func.jvp(function, (x,), (step,))[1], backend="aot_eager"
        )(point, tangent)
    with torch.autograd.forward_ad.dual_level():
        if way == "dual number that requires a gradient":
            point = point.clone().requires_grad_()
        output = function(torch.autograd.forward_ad.make_dual(point, tangent))
        result = torch.autograd.forward_ad.unpack_dual(output).tangent
        return torch.zeros_like(output) if result is None else result  # None stands for zero


@pytest.mark.parametrize("name", Operands._fields)
@pytest.mark.parametrize(
    "way",
    [
        "jvp",
        "jvp of a compiled function",
        "compiled jvp",
        "dual number",
        "dual number that requires a gradient",
    ],
)
def test_forward_mode(way: str, name: str, operands: Operands) -> None:
    # The output is linear in each operand: the derivative along a tangent is the operator itself.
    def function(value: Tensor) -> Tensor:
        return kpnops.decoupled_filter(*operands._replace(**{name: value}))

    point = getattr(operands, name)
    tangent = torch.randn_like(point)
    right_or_refused(lambda: forward_derivative(way, function, point, tangent), function(tangent))


def test_forward_over_reverse(operands: Operands) -> None:
    # Twice the output's Jacobian product: not zero, which is what a dropped tangent would give.
    image, spatial, channel = operands
    tangent = torch.randn_like(image)

    def gradient(operator: Any) -> Callable[[Tensor], Tensor]:
        return torch.func.grad(lambda x: operator(x, spatial, channel).square().sum())

    leaf = image.clone().requires_grad_()
    reference = kpnops.reference.decoupled_filter(leaf, spatial, channel).square().sum()
    (first,) = torch.autograd.grad(reference, leaf, create_graph=True)
    (expected,) = torch.autograd.grad(first, leaf, tangent)  # the Hessian is symmetric
    right_or_refused(
        lambda: torch.func.jvp(gradient(kpnops.decoupled_filter), (image,), (tangent,))[1], expected
    )


def test_functional_gradient(operands: Operands) -> None:
    image, spatial, channel = operands
    leaf = image.clone().requires_grad_()
    output = kpnops.decoupled_filter(leaf, spatial, channel)
    (expected,) = torch.autograd.grad(output.square().sum(), leaf)
    right_or_refused(
        lambda: torch.func.grad(
            lambda x: kpnops.decoupled_filter(x, spatial, channel).square().sum()
        )(image),
        expected,
    )

    def pulled_back() -> Tensor:
        _, pull_back = torch.func.vjp(lambda x: kpnops.decoupled_filter(x, spatial, channel), image)
        return pull_back(2 * output.detach())[0]

    right_or_refused(pulled_back, expected)


def test_second_order_transforms(operands: Operands) -> None:
    image, spatial, channel = operands

    def loss(x: Tensor, operator: Any = kpnops.decoupled_filter) -> Tensor:
        return operator(x, spatial, channel).square().sum()

    def penalty(operator: Any) -> Callable[[Tensor], Tensor]:
        inner = torch.func.grad(lambda x: loss(x, operator))
        return torch.func.grad(lambda x: inner(x).square().sum())

    expected = penalty(kpnops.reference.decoupled_filter)(image)
    right_or_refused(lambda: penalty(kpnops.decoupled_filter)(image), expected)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (1, 0, None)])
def test_vmap_is_refused(in_dims: tuple[int | None, ...], operands: Operands) -> None:
    mapped = [
        tensor if dim is None else torch.stack([tensor, tensor], dim)
        for tensor, dim in zip(operands, in_dims, strict=True)
    ]
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.func.vmap(kpnops.decoupled_filter, in_dims)(*mapped)


def test_batched_cotangents(operands: Operands) -> None:
    # What torch.autograd.functional.jacobian(vectorize=True) does: vmap over the backward alone.
    output = kpnops.decoupled_filter(operands.input.requires_grad_(), *operands[1:])
    cotangents = torch.randn(2, *output.shape, dtype=output.dtype, device=output.device)

    def gradient(cotangent: Tensor, batched: bool = False) -> Tensor:
        return torch.autograd.grad(
            output, operands.input, cotangent, is_grads_batched=batched, retain_graph=True
        )[0]

    expected = torch.stack([gradient(cotangent) for cotangent in cotangents])
    right_or_refused(lambda: gradient(cotangents, batched=True), expected)


def test_checkpoint(device: str) -> None:
    case = Case(padding_mode="circular", kernel_size=(2, 2)).with_dtype(F32)

    def function(*x: Tensor) -> Tensor:
        return kpnops.decoupled_filter(*x, **case.options)

    def checkpointed(*x: Tensor) -> Tensor:
        return checkpoint(function, *x, use_reentrant=False)

    leaves = leaves_of(case.operands(device))
    assert_same(forward_and_backward(checkpointed, leaves), forward_and_backward(function, leaves))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_cuda_graph(device: str) -> None:
    operands = Case(channels=4, size=(33, 65)).with_dtype(F32).operands(device)
    expected = kpnops.decoupled_filter(*operands)  # also loads the kernels, before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = kpnops.decoupled_filter(*operands)
    operands.input.mul_(2)
    graph.replay()
    assert torch.equal(actual, 2 * expected)
