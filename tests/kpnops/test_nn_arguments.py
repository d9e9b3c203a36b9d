"""`kpnops.nn`: arguments, names and shapes of the parameters, errors, texts.

What DDF's modules have is written down by hand from their definitions.
"""

import inspect
import math

import pytest
import torch

from kpnops.nn import DDFPack, DDFUpPack, DecoupledFilter2d, FilterNorm

EMPTY = inspect.Parameter.empty

DEFAULTS = {
    DecoupledFilter2d: [
        *[("kernel_size", EMPTY), ("stride", 1), ("dilation", 1), ("padding_mode", "zeros")],
        *[("combine", "mul"), ("normalize", None), ("scale_factor", 1)],
    ],
    FilterNorm: [
        *[("in_channels", EMPTY), ("kernel_size", EMPTY), ("filter_type", EMPTY)],
        *[("nonlinearity", "linear"), ("running_std", False), ("running_mean", False)],
    ],
    DDFPack: [
        *[("in_channels", EMPTY), ("kernel_size", 3), ("stride", 1), ("dilation", 1), ("head", 1)],
        *[("se_ratio", 0.2), ("nonlinearity", "relu"), ("kernel_combine", "mul")],
    ],
    DDFUpPack: [
        *[("in_channels", EMPTY), ("kernel_size", 3), ("scale_factor", 2), ("dilation", 1)],
        *[("head", 1), ("se_ratio", 0.2), ("nonlinearity", "linear"), ("dw_kernel_size", 3)],
        *[("joint_channels", -1), ("kernel_combine", "mul")],
    ],
}


@pytest.mark.parametrize("module", DEFAULTS)
def test_arguments_have_the_order_and_the_defaults_of_ddf(module):
    parameters = inspect.signature(module).parameters
    defaults = [(name, parameter.default) for name, parameter in parameters.items()]
    assert defaults == DEFAULTS[module]


def spatial(name, filters, channels, taps):
    return {f"{name}.weight": (filters * taps, channels, 1, 1), f"{name}.bias": (filters * taps,)}


def channel(name, channels, middle, taps):
    return {
        f"{name}.1.weight": (middle, channels, 1, 1),
        f"{name}.1.bias": (middle,),
        f"{name}.3.weight": (channels * taps, middle, 1, 1),
        f"{name}.3.bias": (channels * taps,),
        f"{name}.4.std": (channels * taps,),
    }


PARAMETERS = {
    "norm": (FilterNorm(4, 3, "spatial"), {}),
    "norm, std": (FilterNorm(4, 3, "channel", "relu", True), {"std": (36,)}),
    "norm, mean": (FilterNorm(2, 5, "spatial", running_mean=True), {"mean": (50,)}),
    "norm, both": (FilterNorm(1, 3, "channel", "relu", True, True), {"std": (9,), "mean": (9,)}),
    "op": (DecoupledFilter2d(3), {}),
    "pack": (
        DDFPack(16),
        {
            "spatial_branch.0.weight": (9, 16, 1, 1),
            "spatial_branch.0.bias": (9,),
            "channel_branch.1.weight": (3, 16, 1, 1),
            "channel_branch.1.bias": (3,),
            "channel_branch.3.weight": (144, 3, 1, 1),
            "channel_branch.3.bias": (144,),
            "channel_branch.4.std": (144,),
        },
    ),
    "pack, heads": (
        DDFPack(64, 5, head=4, se_ratio=0.25, kernel_combine="add"),
        spatial("spatial_branch.0", 4, 64, 25) | channel("channel_branch", 64, 16, 25),
    ),
    "pack, rgb": (  # there the width would be 0
        DDFPack(3),
        spatial("spatial_branch.0", 1, 3, 9) | channel("channel_branch", 3, 1, 9),
    ),
    "up": (
        DDFUpPack(10),
        {
            f"spatial_branch.{n}.{name}": shape
            for n in range(4)
            for name, shape in {
                "0.weight": (10, 1, 3, 3),
                "0.bias": (10,),
                "1.0.weight": (9, 10, 1, 1),
                "1.0.bias": (9,),
            }.items()
        }
        | {
            name: shape
            for n in range(4)
            for name, shape in channel(f"channel_branch.{n}", 10, 2, 9).items()
        },
    ),
    "up, joint": (
        DDFUpPack(10, 5, 3, head=2, joint_channels=10),
        {
            name: shape
            for n in range(9)
            for name, shape in spatial(f"spatial_branch.{n}.0", 2, 10, 25).items()
        }
        | {
            name: shape
            for n in range(9)
            for name, shape in channel(f"channel_branch.{n}", 10, 2, 25).items()
        },
    ),
    "up, depthwise": (
        DDFUpPack(10, scale_factor=1, dw_kernel_size=7),
        {"spatial_branch.0.0.weight": (10, 1, 7, 7), "spatial_branch.0.0.bias": (10,)}
        | spatial("spatial_branch.0.1.0", 1, 10, 9)
        | channel("channel_branch.0", 10, 2, 9),
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dicts_have_the_names_and_shapes_of_ddf(name):
    module, expected = PARAMETERS[name]
    state = module.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)  # as trained there, for optimizers' states too
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not list(module.buffers())
    trained = {key: torch.randn(shape) for key, shape in expected.items()}
    module.load_state_dict(trained, strict=True)


def test_random_numbers_give_the_initial_values_of_ddf():
    torch.manual_seed(7)
    drawn = [torch.nn.Conv2d(10, 9, 1), torch.nn.Conv2d(10, 2, 1), torch.nn.Conv2d(2, 90, 1)]
    expected = [parameter for layer in drawn for parameter in layer.parameters()]
    expected.append(torch.nn.Parameter(torch.randn(90) * (math.sqrt(2) / 3)))
    torch.manual_seed(7)
    actual = list(DDFPack(10).parameters())
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


# -------------------------------------------------------------------------------- errors and texts

BAD_ARGUMENTS = [
    (TypeError, "kernel_size", lambda: DecoupledFilter2d(3.0)),
    (ValueError, "kernel_size", lambda: DecoupledFilter2d((3, 0))),
    (ValueError, "stride", lambda: DecoupledFilter2d(3, 0)),
    (ValueError, "dilation", lambda: DecoupledFilter2d(3, 1, (1, 1, 1))),
    (ValueError, "padding_mode", lambda: DecoupledFilter2d(3, padding_mode="same")),
    (ValueError, "combine", lambda: DecoupledFilter2d(3, combine="max")),
    (ValueError, "normalize", lambda: DecoupledFilter2d(3, normalize="sum")),
    (TypeError, "scale_factor", lambda: DecoupledFilter2d(3, scale_factor=2.0)),
    (ValueError, "scale_factor", lambda: DecoupledFilter2d(3, 2, scale_factor=2)),
    (ValueError, "spatial_filter", lambda: DecoupledFilter2d(3)(*[torch.rand(1, 2, 3, 3)] * 2)),
    (ValueError, "in_channels", lambda: FilterNorm(0, 3, "spatial")),
    (TypeError, "in_channels", lambda: FilterNorm(1.5, 3, "spatial")),
    (ValueError, "kernel_size", lambda: FilterNorm(1, 1, "spatial")),
    (ValueError, "filter_type", lambda: FilterNorm(1, 3, "both")),
    (ValueError, "nonlinearity", lambda: FilterNorm(1, 3, "spatial", "swish")),
    (ValueError, "x", lambda: FilterNorm(2, 3, "spatial")(torch.rand(1, 9, 4, 4))),
    (ValueError, "x", lambda: FilterNorm(2, 3, "channel")(torch.rand(1, 9))),
    (ValueError, "x", lambda: FilterNorm(2, 3, "channel")(torch.rand(18))),
    (ValueError, "in_channels", lambda: DDFPack(0)),
    (ValueError, "kernel_size", lambda: DDFPack(4, 1)),
    (TypeError, "kernel_size", lambda: DDFPack(4, (3, 3))),
    (ValueError, "stride", lambda: DDFPack(4, 3, 0)),
    (ValueError, "dilation", lambda: DDFPack(4, 3, 1, 0)),
    (ValueError, "head", lambda: DDFPack(4, head=3)),
    (ValueError, "head", lambda: DDFPack(4, head=0)),
    (ValueError, "se_ratio", lambda: DDFPack(4, se_ratio=0)),
    (TypeError, "se_ratio", lambda: DDFPack(4, se_ratio="wide")),
    (ValueError, "nonlinearity", lambda: DDFPack(4, nonlinearity="swish")),
    (ValueError, "kernel_combine", lambda: DDFPack(4, kernel_combine="max")),
    (ValueError, "x", lambda: DDFPack(4)(torch.rand(1, 3, 5, 5))),
    (ValueError, "x", lambda: DDFPack(4)(torch.rand(4, 5, 5))),
    (ValueError, "scale_factor", lambda: DDFUpPack(4, scale_factor=0)),
    (ValueError, "dw_kernel_size", lambda: DDFUpPack(4, dw_kernel_size=4)),
    (TypeError, "joint_channels", lambda: DDFUpPack(4, joint_channels=None)),
    (ValueError, "kernel_combine", lambda: DDFUpPack(4, kernel_combine=1)),
    (ValueError, "x", lambda: DDFUpPack(4)(torch.rand(1, 3, 5, 5))),
    (ValueError, "joint_x", lambda: DDFUpPack(4)(torch.rand(1, 4, 5, 5), torch.rand(1, 4, 5, 6))),
    (ValueError, "joint_x", lambda: DDFUpPack(4, joint_channels=2)(torch.rand(1, 4, 5, 5))),
]


@pytest.mark.parametrize("number", range(len(BAD_ARGUMENTS)))
def test_errors_name_the_argument(number):
    error, name, call = BAD_ARGUMENTS[number]
    with pytest.raises(error, match=f"^{name}: "):
        call()


def test_repr_shows_what_differs():
    assert repr(DecoupledFilter2d(3)) == "DecoupledFilter2d(kernel_size=(3, 3))"
    text = repr(DecoupledFilter2d((1, 5), 2, combine="add"))
    assert text == "DecoupledFilter2d(kernel_size=(1, 5), stride=(2, 2), combine='add')"
    assert "filter_type='channel', running_std=True" in repr(DDFPack(4))
    assert "std=0.333333" in repr(FilterNorm(1, 3, "spatial"))
    assert "stride=(2, 2), dilation=(1, 1), head=2, kernel_combine='mul'" in repr(
        DDFPack(4, stride=2, head=2)
    )
    assert "scale_factor=3" in repr(DDFUpPack(4, scale_factor=3))
