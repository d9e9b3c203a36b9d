"""Which calls the counts from compiled kernels are of, and what they launch."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import as_dtype
from kpnops._decoupled_filter.call import Call, Gradients
from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.plan import Launch
from kpnops._decoupled_filter.triton_backend import plan_backward, plan_forward

FORWARD = "forward"
BACKWARD = "backward"
# Rows and columns that every tile divides, and one less: neither rows nor planes of that start at
# multiples of 16, so that no loads can be joined. Small images would take other launches.
SIZES = {"W16": (512, 512), "Wodd": (511, 511)}
BATCH = 2  # Triton compiles a batch of one by itself
FLOAT32, BFLOAT16 = ("float32", "float32"), ("bfloat16", "bfloat16")
MIXED = ("float32", "bfloat16")  # a network's filters under autocast, on an image


@dataclass(frozen=True)
class Problem:
    """One call: stride 1, dilation 1, zero padding, one spatial group, ``combine="mul"``."""

    channels: int
    kernel_size: int
    input_dtype: str
    filter_dtype: str
    form: str  # "none", "pixel" or "image"
    width: str  # a key of SIZES

    @property
    def name(self) -> str:
        """Unique name of the problem."""
        dtypes = self.filter_dtype
        if self.input_dtype != self.filter_dtype:
            dtypes += f"+{self.input_dtype}"
        return f"C{self.channels} K{self.kernel_size} {dtypes} {self.form} {self.width}"


def problems() -> list[Problem]:
    """Return the problems of the table: those that people meet most, each thing once."""
    found = []
    for size, dtypes in itertools.product((3, 5, 7), (FLOAT32, BFLOAT16, MIXED)):
        found.append(Problem(3, size, *dtypes, "pixel", "W16"))
        found.append(Problem(64, size, *dtypes, "pixel", "W16"))
    for size, dtypes in itertools.product((3, 5), (FLOAT32, BFLOAT16, MIXED)):
        found.append(Problem(64, size, *dtypes, "pixel", "Wodd"))
    for size, dtypes in itertools.product((3, 5), (FLOAT32, BFLOAT16)):
        found.append(Problem(3, size, *dtypes, "pixel", "Wodd"))
        found.append(Problem(3, size, *dtypes, "image", "W16"))
        found.append(Problem(64, size, *dtypes, "image", "W16"))
        found.append(Problem(64, size, *dtypes, "none", "W16"))
    # on tensor cores
    for size, width in itertools.product((11, 17), SIZES):
        found.append(Problem(64, size, *BFLOAT16, "pixel", width))
    return found


def launches(problem: Problem) -> Iterator[tuple[str, Launch]]:
    """Yield the pass and the launch of the fast kernels that a problem takes."""
    call, output, grads = _call(problem)
    for pass_name, plan in (
        (FORWARD, plan_forward(call, output)),
        (BACKWARD, plan_backward(call, output, grads)),
    ):
        for item in plan.launches:
            if not item.kernel.__name__.startswith("_gather"):
                yield pass_name, item


def _call(problem: Problem) -> tuple[Call, Tensor, Gradients]:
    size = problem.kernel_size
    window = Window(kernel_size=(size, size))
    C, (H, W) = problem.channels, SIZES[problem.width]

    def meta(dtype: torch.dtype, *sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    x_dtype, dtype = as_dtype(problem.input_dtype), as_dtype(problem.filter_dtype)
    image = meta(x_dtype, BATCH, C, H, W)
    spatial = meta(dtype, BATCH, window.taps, H, W)
    channel = {
        "none": None,
        "image": meta(dtype, BATCH, C, window.taps),
        "pixel": meta(dtype, BATCH, C, H, W),
    }[problem.form]
    call = Call(image, spatial, channel, window, "mul")
    output = meta(call.result_dtype, *call.output_shape)
    grads = Gradients(
        *(None if t is None else torch.empty_like(t) for t in (image, spatial, channel))
    )
    return call, output, grads


def row_name(problem: Problem, pass_name: str, launch: Launch) -> str:
    """Return the unique name of a launch of a problem."""
    kernel = launch.kernel.__name__.strip("_")
    role = ""
    if launch.constants.get("TRANSPOSED"):
        role = " grad_input"
    elif pass_name == BACKWARD and "fwd" in kernel:
        role = " grad_gain"
    return f"{problem.name} {pass_name}{role} {kernel}"
