"""torch.compile, torch.export, AOTInductor, opcheck, checkpoints and CUDA graphs."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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
    "softmax": Case(channels=4, groups=2, kernel_size=(1, 3), normalize="softmax"),
    "upsampling, per image": Case(scale_factor=2, channel_filter="image", kernel_size=(2, 2)),
    "mixing": Case(batch=2, channel_filter="mix", output_channels=2, channel_batch=1),
    "channel filter alone": Case(spatial=False, channel_filter="image", stride=(2, 1)),
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


def function_of(case: Case) -> Callable[..., Tensor]:
    """The operator on the tensors that the case has."""

    def call(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        there = [shape is not None for shape in case.shapes]
        arguments = [next(given) if exists else None for exists in there]
        return kpnops.decoupled_filter(*arguments, **case.options)

    return call


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

    function = function_of(case)
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


GRAPHS = {
    "stride 1": {},
    "rounded up": {"stride": (2, 2)},
    "rounded down": {"stride": (2, 2), "rounding": ("floor", "floor")},
    "softmax": {"normalize": "softmax"},
    "upsampling": {"scale_factor": 2},
}


@pytest.mark.parametrize("kernel_size", [None] if INTERPRETED else [2, None])
@pytest.mark.parametrize("name", ["stride 1", "rounded up"] if INTERPRETED else list(GRAPHS))
def test_one_graph_for_all_sizes(name: str, kernel_size: int | None, device: str) -> None:
    backend = CountingBackend()
    options = {key: value for key, value in GRAPHS[name].items() if key != "rounding"}

    def function(*operands: Tensor) -> Tensor:
        return kpnops.decoupled_filter(*operands, kernel_size=kernel_size, **options)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    # The sizes of the first call differ from each other, since equal ones count as one symbol;
    # later ones are odd and even: rounded up or down, or not at all.
    for batch, channels, size in [(2, 3, (11, 15)), (3, 5, (4, 7)), (2, 2, (5, 4))]:
        case = Case(batch, channels, size, (2, 2), **GRAPHS[name])
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
        self.call = function_of(case)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call(*tensors)


def tensors_of(case: Case, device: str) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in case.operands(device) if tensor is not None)


def saved_and_loaded(exported: torch.export.ExportedProgram) -> torch.nn.Module:
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize("name", SOME_CASES)
def test_export(name: str, device: str) -> None:
    case = typed(name)
    tensors = tensors_of(case, device)
    loaded = saved_and_loaded(torch.export.export(Layer(case), tensors))
    assert torch.equal(loaded(*tensors), Layer(case)(*tensors))


def dynamic_sizes(case: Case) -> tuple[dict[int, Any], ...]:
    """Batch, height and width of every tensor as free dimensions."""
    batch = torch.export.Dim("batch", min=2, max=64)
    height = torch.export.Dim("height", min=2, max=4096)
    width = torch.export.Dim("width", min=2, max=4096)
    rows, columns = case.scale_factor * height, case.scale_factor * width
    shapes = {"input": {0: batch, 2: height, 3: width}, "filter": {0: batch, 2: rows, 3: columns}}
    return (shapes["input"], shapes["filter"], shapes["filter"])[: 3 - (case.shapes[2] is None)]


DYNAMIC = {
    "gains": Case(batch=2, channels=4),
    "softmax": Case(batch=2, channels=4, normalize="softmax", padding_mode="circular"),
    "upsampling": Case(batch=2, channels=4, scale_factor=2, channel_filter="none"),
}


@pytest.mark.parametrize("name", ["gains"] if INTERPRETED else list(DYNAMIC))
def test_export_with_dynamic_sizes(name: str, device: str) -> None:
    case = DYNAMIC[name].with_dtype(F32)
    exported = torch.export.export(
        Layer(case), tensors_of(case, device), dynamic_shapes=(dynamic_sizes(case),)
    )
    other = replace(case, batch=3, size=(9, 4))
    tensors = tensors_of(other, device)
    assert torch.equal(saved_and_loaded(exported)(*tensors), Layer(other)(*tensors))


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler: g++")
# PyTorch's own: its serialised trees are read with a class that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_ahead_of_time_compilation(tmp_path: Path) -> None:
    """AOTInductor: the package runs in a process that has imported kpnops, at other sizes too."""
    case = DYNAMIC["gains"].with_dtype(F32)
    exported = torch.export.export(
        Layer(case), tensors_of(case, "cpu"), dynamic_shapes=(dynamic_sizes(case),)
    )
    path = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(tmp_path / "model.pt2")
    )
    tensors = tensors_of(replace(case, batch=3, size=(9, 4)), "cpu")
    actual = torch._inductor.aoti_load_package(path)(*tensors)
    assert torch.equal(actual, Layer(case)(*tensors))


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
        forward_and_backward(function_of(case), leaves)
    assert [func for func, _, _ in recorder.calls] == [
        torch.ops.kpnops.decoupled_filter.default,
        torch.ops.kpnops.decoupled_filter_backward.default,
    ]
    (forward, args, kwargs), (backward, backward_args, backward_kwargs) = recorder.calls
    torch.library.opcheck(forward, without_gradients(args), kwargs)
    remaining = iter(leaves)
    there = [shape is not None for shape in case.shapes]  # else None, or ones made by the package
    tensors = [next(remaining) if own else arg for own, arg in zip(there, args, strict=False)]
    tracked = (*tensors, *args[3:])
    torch.library.opcheck(forward, tracked, kwargs)
    torch.library.opcheck(backward, without_gradients(backward_args), backward_kwargs)


def without_gradients(arguments: tuple) -> tuple:
    return tuple(arg.detach() if torch.is_tensor(arg) else arg for arg in arguments)


def test_checkpoint(device: str) -> None:
    case = Case(padding_mode="circular", kernel_size=(2, 2)).with_dtype(F32)

    def function(*x: Tensor) -> Tensor:
        return kpnops.decoupled_filter(*x, **case.options)

    def checkpointed(*x: Tensor) -> Tensor:
        return checkpoint(function, *x, use_reentrant=False)

    leaves = leaves_of(case.operands(device))
    assert_same(forward_and_backward(checkpointed, leaves), forward_and_backward(function, leaves))


@pytest.mark.parametrize("name", ["gains", "softmax", "upsampling, per image", "mixing"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_cuda_graph(name: str, device: str) -> None:
    case = replace(typed(name), size=(33, 65))
    function, leaves = function_of(case), leaves_of(case.operands(device))
    # the first call also loads the kernels, which no capture may do
    forward_and_backward(function, leaves)
    cotangent = case.cotangent(device)

    def run() -> list[Tensor]:
        output = function(*leaves)
        return [output, *torch.autograd.grad(output, leaves, cotangent)]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = run()
    with torch.no_grad():
        leaves[0].mul_(-1)
    graph.replay()
    assert_same(actual, run())
