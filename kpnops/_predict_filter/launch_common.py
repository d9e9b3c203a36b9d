"""What the launchers of the fused head share: how products are taken, strides, constants."""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .._decoupled_filter.launch_band import architecture, holds_tiles
from .._decoupled_filter.plan import sum_type
from .._decoupled_filter.route import interpreted
from . import launch
from .call import Call

__all__ = [
    "bias_of",
    "block_constants",
    "input_strides",
    "launch_of",
    "product_constants",
    "sum_constants",
    "weight_of",
    "window_constants",
]


def _halves(call: Call) -> bool:
    """Whether features and weight are of one 16-bit type: tensor cores multiply them exactly."""
    return call.features.dtype == call.weight.dtype and call.features.dtype.itemsize == 2


def _matrix(call: Call) -> bool:
    """Whether the logits are a product on tensor cores. AMD's have no tf32."""
    if call.sum_dtype == torch.float64 or not holds_tiles(architecture(call.input.device)):
        return False
    return _halves(call) or (call.precision != "ieee" and torch.version.hip is None)


def launch_of(call: Call, channels_per_group: int) -> launch.HeadLaunch:
    """Launch parameters of the kernels that form logits."""
    itemsize = max(call.features.dtype.itemsize, call.weight.dtype.itemsize)
    return launch.forward_launch(
        call.window.kernel_size,
        channels_per_group,
        call.features.shape[1],
        itemsize,
        _matrix(call),
        call.precision,
    )


def weight_of(call: Call) -> Tensor:
    """The weight as the kernels of the logits read it best.

    Without a product taps lie side by side, in a copy: their offsets are constants then.
    """
    return call.weight if _matrix(call) else call.weight.t().contiguous().t()


def bias_of(call: Call) -> Tensor:
    """The bias, one number after the other; without one, something to point to."""
    return call.weight if call.bias is None else call.bias.contiguous()


def block_constants(config: launch.HeadLaunch) -> dict[str, int]:
    """Constants of a block of taps."""
    return {
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "TAPS": config.taps,
        "FEATURE_BLOCK": config.feature_block,
        "RESIDENT": config.resident,
    }


def product_constants(call: Call) -> dict[str, Any]:
    """How logits are formed. Triton's interpreter knows no product of bfloat16."""
    operand = sum_type(call)
    if _halves(call) and not interpreted():
        operand = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[call.features.dtype]
    return {
        "SOFTMAX": call.softmax,
        "HAS_BIAS": call.bias is not None,
        "MATRIX": _matrix(call),
        "PRECISION": call.precision,
        "OPERAND": operand,
        "ACC": sum_type(call),
    }


def sum_constants(call: Call) -> dict[str, Any]:
    """How the gradient of the logits, in the type of sums, is multiplied with features or weight.

    Of 16-bit numbers the other factor is exact in tf32, and three passes split this one.
    """
    matrix = _matrix(call) and torch.version.hip is None
    precision = "tf32x3" if call.precision == "ieee" else call.precision
    return {"MATRIX": matrix, "PRECISION": precision, "ACC": sum_type(call)}


def window_constants(call: Call) -> dict[str, Any]:
    """Size of the filter, padding, and how the channel filter comes in."""
    return {
        "KH": call.window.kernel_size[0],
        "KW": call.window.kernel_size[1],
        "COMBINE": call.combine,
        "PADDING": call.window.padding_mode,
    }


def input_strides(call: Call, tensor: Tensor) -> dict[str, Any]:
    """Strides of the input or its gradient without the frames', and the distance of frames."""
    first, *rest = tensor.stride()
    frame = rest.pop(0) if call.burst else 0
    return {"frame_stride": frame, "x_strides": (first, *rest)}
