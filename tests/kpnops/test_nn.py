"""`kpnops.nn`: the modules against their formulas, which read a state dict by the names in it
(`tests/ddf_formulas.py`); sizes and dtypes that break DDF's modules among them."""

import copy
import math

import pytest
import torch

import kpnops
from kpnops.nn import DDFPack, DDFUpPack, DecoupledFilter2d, FilterNorm
from tests import ddf_formulas
from tests.helpers import (
    COMPILED_ROUTES,
    FLOAT64_BUDGET,
    LAYOUTS,
    Budget,
    Expected,
    arrange,
    compare,
    has_promised_format,
    relative_errors,
    to_numpy,
)

F64 = torch.float64


def random(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def randomised(module, dtype=F64):
    """The module with other numbers than its own in every parameter."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=seed + 10) / 2
    return module.to(dtype)


def assert_close(actual, expected, name="output", budget=FLOAT64_BUDGET):
    """Within the budget of the largest number: a normalised filter cancels, so that single numbers
    have no scale of their own."""
    value = to_numpy(expected)
    magnitude = abs(value) * 0 + max(abs(value).max(), 1)
    compare(actual, Expected(value, magnitude, budget), name)


def assert_module_equals(formula, module, inputs, device="cpu"):
    """Output, and the gradients of the inputs and of every parameter."""
    state = {name: value.clone().requires_grad_() for name, value in module.state_dict().items()}
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    expected = formula(*leaves, state)
    cotangent = random(*expected.shape, seed=99)
    gradients = torch.autograd.grad(expected, [*leaves, *state.values()], cotangent)

    module = copy.deepcopy(module).to(device)
    moved = [tensor.to(device).requires_grad_() for tensor in inputs]
    actual = module(*moved)
    parameters = dict(module.named_parameters())
    assert list(parameters) == list(state)
    got = torch.autograd.grad(actual, [*moved, *parameters.values()], cotangent.to(device))

    assert_close(actual, expected)
    for name, one, other in zip([*range(len(leaves)), *state], got, gradients, strict=True):
        assert_close(one, other, f"gradient of {name}")


# -------------------------------------------------------------------------------------- FilterNorm

GAINS = {"linear": 1, "relu": math.sqrt(2), "tanh": 5 / 3, "selu": 3 / 4}
NORMS = {
    "spatial": ((2, 3, "spatial"), (2, 18, 4, 5)),
    "spatial, std": ((2, 3, "spatial", "relu", True), (2, 18, 4, 5)),
    "spatial, mean": ((3, 2, "spatial", "tanh", False, True), (1, 12, 1, 3)),
    "spatial, both": ((1, 4, "spatial", "relu", True, True), (2, 16, 2, 2)),
    "channel": ((4, 2, "channel", "selu"), (3, 16, 1, 1)),
    "channel, both": ((4, 2, "channel", "relu", True, True), (3, 16)),
    "channel, as K x K": ((4, 2, "channel", "selu", True), (3, 4, 2, 2)),
}


@pytest.mark.parametrize("name", NORMS)
def test_filter_norm_equals_the_formula(name):
    arguments, shape = NORMS[name]
    filters, kernel_size, filter_type, nonlinearity, *_ = *arguments, "linear"

    def formula(x, state):
        x = x.reshape(x.shape[0], -1) if filter_type == "channel" else x
        std = state.get("std", GAINS[nonlinearity] / kernel_size)
        return ddf_formulas.normalise(x, filters, std, state.get("mean", 0.0))

    assert_module_equals(formula, randomised(FilterNorm(*arguments)), [3 * random(*shape) + 1])


@pytest.mark.parametrize("nonlinearity", GAINS)
def test_filter_norm_sets_the_standard_deviation(nonlinearity):
    norm = FilterNorm(3, 4, "spatial", nonlinearity)
    filters = norm(random(2, 48, 3, 2)).unflatten(1, (3, 16))
    assert_close(filters.std(dim=2), torch.full((2, 3, 3, 2), GAINS[nonlinearity] / 4, dtype=F64))
    assert_close(filters.mean(dim=2), torch.zeros(2, 3, 3, 2, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("filter_type", ["spatial", "channel"])
def test_a_filter_of_equal_taps_becomes_zero(filter_type, dtype):  # there NaN in float16
    x = torch.ones(1, 9, 2, 2, dtype=dtype) if filter_type == "spatial" else torch.ones(1, 9)
    x = x.to(dtype).requires_grad_()
    result = FilterNorm(1, 3, filter_type, running_std=True)(x)
    assert result.dtype == dtype
    assert not result.count_nonzero()
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert not gradient.isnan().any()


def test_filter_norm_copies_nothing_for_channels_last():
    x = arrange(random(2, 18, 4, 5), "channels_last")
    result = FilterNorm(2, 3, "spatial")(x)
    assert result.stride() == x.stride()
    assert_close(result, FilterNorm(2, 3, "spatial")(x.contiguous()))


# --------------------------------------------------------------------------------- other modules

PACKS = {
    "defaults": ({}, (2, 10, 5, 6)),
    "add": ({"kernel_combine": "add"}, (2, 10, 5, 6)),
    "rgb": ({}, (2, 3, 5, 6)),
    "one channel": ({"stride": 2}, (2, 1, 5, 7)),
    "rgb, a head each": ({"head": 3}, (1, 3, 5, 6)),
    "odd sizes, strided": ({"stride": 2}, (2, 5, 7, 9)),
    "odd and even, strided, heads": ({"stride": 2, "head": 2}, (2, 6, 7, 8)),
    "strided further, add": ({"stride": 3, "kernel_combine": "add"}, (2, 4, 7, 5)),
    "dilated": ({"dilation": 8, "head": 4}, (1, 4, 9, 9)),
    "five by five": ({"kernel_size": 5, "dilation": 2}, (2, 6, 4, 3)),
    "two by two": ({"kernel_size": 2}, (2, 5, 4, 5)),
}


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", PACKS)
def test_pack_equals_the_formula(name, device):
    options, shape = PACKS[name]
    module = randomised(DDFPack(shape[1], **options))
    stride = options.get("stride", 1)
    expected_size = [-(-size // stride) for size in shape[2:]]
    assert list(module(random(*shape)).shape) == [*shape[:2], *expected_size]
    assert_module_equals(
        lambda x, state: ddf_formulas.pack(x, state, **options), module, [random(*shape)], device
    )


UPS = {
    "defaults": ({}, (2, 5, 3, 4), None),
    "add": ({"kernel_combine": "add"}, (2, 5, 3, 4), None),
    "rgb": ({}, (1, 3, 3, 4), None),
    "heads": ({"head": 4}, (2, 4, 3, 2), None),
    "by three": ({"scale_factor": 3, "head": 3}, (1, 3, 2, 3), None),
    "by one": ({"scale_factor": 1, "dilation": 9}, (1, 2, 4, 5), None),
    "guided": ({}, (2, 5, 3, 4), (2, 5, 3, 4)),
    "joint": ({"joint_channels": 5}, (2, 5, 3, 4), (2, 5, 3, 4)),
    "joint, other channels": ({"joint_channels": 2, "head": 5}, (2, 5, 3, 4), (2, 2, 3, 4)),
    "joint, alone": ({"joint_channels": 5}, (2, 5, 3, 4), None),
    "large depthwise": ({"dw_kernel_size": 5}, (1, 2, 3, 4), None),
    "five by five": ({"kernel_size": 5}, (1, 2, 3, 4), None),
}


@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("name", UPS)
def test_up_pack_equals_the_formula(name, device):
    options, shape, joint_shape = UPS[name]
    module = randomised(DDFUpPack(shape[1], **options))
    inputs = [random(*shape)]
    if joint_shape is not None:
        inputs.append(random(*joint_shape, seed=3))

    def formula(x, *rest):
        joint = rest[0] if joint_shape is not None else None
        return ddf_formulas.up_pack(x, rest[-1], joint, **options)

    assert_module_equals(formula, module, inputs, device)


def test_decoupled_filter_2d_is_the_op():
    image, taps, matrix = random(2, 4, 7, 6), random(2, 12, 4, 6), random(2, 3, 4, 4, 6)
    gains = random(1, 4, 4, 6)
    options = {
        "kernel_size": (2, 3),
        "stride": (2, 1),
        "dilation": (1, 2),
        "padding_mode": "circular",
        "normalize": "softmax",
    }
    layer = DecoupledFilter2d(**options)
    for channel_filter in (None, gains, matrix):
        expected = kpnops.decoupled_filter(image, taps, channel_filter, **options)
        assert torch.equal(layer(image, taps, channel_filter), expected)
    layer = DecoupledFilter2d(3, scale_factor=2)
    larger = random(2, 9, 14, 12)
    expected = kpnops.decoupled_filter(image, larger, scale_factor=2)
    assert torch.equal(layer(image, larger), expected)
    assert repr(layer) == "DecoupledFilter2d(kernel_size=(3, 3), scale_factor=2)"
    per_image = random(2, 4, 6)
    layer = DecoupledFilter2d((2, 3), combine="add")
    expected = kpnops.decoupled_filter(image, None, per_image, kernel_size=(2, 3), combine="add")
    assert torch.equal(layer(image, None, per_image), expected)


MODULES = {
    "norm": (FilterNorm(4, 3, "spatial"), (2, 36, 4, 5)),
    "pack": (DDFPack(4), (2, 4, 5, 6)),
    "up": (DDFUpPack(4), (2, 4, 5, 6)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODULES)
def test_memory_formats(name, layout):
    module, shape = MODULES[name]
    x = arrange(random(*shape, dtype=torch.float32), layout)
    result = module(x)
    torch.testing.assert_close(result, module(x.contiguous()))
    if layout in ("contiguous", "channels_last"):
        assert has_promised_format(result, x)


@pytest.mark.parametrize("name", MODULES)
def test_no_images(name):
    module, shape = MODULES[name]
    x = torch.rand(0, *shape[1:], requires_grad=True)
    scale = 2 if name == "up" else 1
    result = module(x)
    assert result.shape == (0, shape[1], scale * shape[2], scale * shape[3])
    result.sum().backward()


FORMULAS = {"pack": ddf_formulas.pack, "up": ddf_formulas.up_pack}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_half_precision(name, dtype):
    """No less exact than the formula in the same dtype, with the same rounded numbers."""
    module, shape = MODULES[name]
    module = copy.deepcopy(module).to(dtype)
    x = random(*shape, dtype=dtype)
    state = module.state_dict()
    exact = FORMULAS[name](x.double(), {key: value.double() for key, value in state.items()})
    result = module(x)
    assert result.dtype == dtype
    value = to_numpy(exact)
    rough = to_numpy(FORMULAS[name](x, state))
    magnitude = abs(value) * 0 + abs(value).max()
    budget = relative_errors(rough, value, magnitude)
    # rounding errors are luck: twice those of the formula, which rounds in more places
    assert_close(result, exact, budget=Budget(2 * budget.relative_l2, 2 * budget.maximum))
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_autocast_narrows_the_filters_and_not_the_image(name, dtype):
    module, shape = MODULES[name]
    module = copy.deepcopy(module)
    x = random(*shape, dtype=dtype)
    dtypes = []
    for layer in module.modules():
        if isinstance(layer, FilterNorm):
            layer.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        result = module(x)
    assert result.dtype == dtype
    assert set(dtypes) == {torch.bfloat16}
    result.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", [*MODULES, "strided"])
def test_compiles_into_one_graph(name, dynamic):
    torch.compiler.reset()
    module, shape = MODULES.get(name, (DDFPack(4, stride=2), (2, 4, 5, 7)))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in [shape, (3, shape[1], 7, 9)] if dynamic else [shape]:
        x = random(*size, dtype=torch.float32).requires_grad_(not dynamic)
        expected = module(x)
        actual = compiled(x)
        torch.testing.assert_close(actual, expected)
        if not dynamic:  # twice the graph, twice the time
            cotangent = torch.randn_like(expected)
            (expected_gradient,) = torch.autograd.grad(expected, x, cotangent)
            (gradient,) = torch.autograd.grad(actual, x, cotangent)
            torch.testing.assert_close(gradient, expected_gradient)
    torch.compiler.reset()


def test_export():
    module = DDFUpPack(3)
    x = torch.rand(2, 3, 5, 7)
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))


@pytest.mark.parametrize("name", FORMULAS)
def test_an_ensemble_by_vmap(name):
    module, shape = MODULES[name]
    members = [randomised(copy.deepcopy(module)) for _ in range(2)]
    for parameter in members[1].parameters():
        parameter.data += 1
    parameters, buffers = torch.func.stack_module_state(members)
    x = random(*shape)

    def call(parameters, buffers):
        return torch.func.functional_call(members[0], (parameters, buffers), (x,))

    actual = torch.func.vmap(call)(parameters, buffers)
    assert_close(actual, torch.stack([member(x) for member in members]))
