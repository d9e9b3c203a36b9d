"""Training steps of `dkpn.DKPN`, as calls without arguments, and whether they are right.

The network is imported where it is needed: machines that measure filters alone may lack what it
depends on.

The weights change with every call, so what is checked is the gradient of a fresh network's first
step, in float32, against that of the naive filter.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bench.head_cases import IEEE
from bench.head_operations import matrix_precision
from bench.operations import Call
from bench.oracle import WrongResultError, unit_roundoff
from bench.providers import Provider
from bench.results import ALTERNATIVE, OWN
from bench.step_cases import StepCase, StepTensors

if TYPE_CHECKING:
    from dkpn.model import DKPN

STEP_FUSED = "dkpn_kpnops"  # filters with kpnops.decoupled_filter
STEP_NAIVE = "dkpn_naive"  # with kpnops.reference.decoupled_filter
STEP_HEAD = "dkpn_fused_head"  # with kpnops.predict_filter, which stores no filters

LEARNING_RATE = 1e-4
LARGEST_NORM = 1.0
SEED = 0
# A gradient may differ from the naive filter's by this times what one rounding of every weight
# moves that one by.
SLACK = 8.0
# Floats that the network keeps for each pixel, with their gradients: an upper bound.
FEATURE_FLOATS = 1000

Op = Literal["fused", "naive"]
Head = Literal["stored", "fused"]
_ROUTES: dict[str, tuple[Op, Head]] = {
    STEP_FUSED: ("fused", "stored"),
    STEP_NAIVE: ("naive", "stored"),
    STEP_HEAD: ("fused", "fused"),
}


def make_model(name: str, kernel_size: int, device: torch.device) -> "DKPN":
    """Return the default network but for its filters' size, with the same weights every time.

    Its last layer starts at zero, behind which nothing has a gradient; here it is random.
    """
    from dkpn.config import DKPNConfig
    from dkpn.model import DKPN

    op, head = _ROUTES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = DKPN(DKPNConfig(kernel_size=kernel_size), op, head)
        torch.nn.init.normal_(model.head.convolution.weight, std=0.02)
    return model.to(device)


def backpropagate(model: "DKPN", tensors: StepTensors, autocast: bool) -> Tensor:
    """Set the gradients of all weights; return the loss."""
    from dkpn.losses import LossConfig, reconstruction_loss

    photo, truth = tensors
    with torch.autocast(photo.device.type, torch.bfloat16, enabled=autocast):
        output = model(photo)
    loss = reconstruction_loss(output, photo, truth, LossConfig()).total
    model.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach()


def move_weights(model: "DKPN", unit: float) -> None:
    """Change every weight by one rounding, up or down by chance; ``unit`` is its unit roundoff."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for weight in model.parameters():
            signs = torch.randint(0, 2, weight.shape, generator=generator, device=device) * 2 - 1
            weight.mul_(1 + 2 * unit * signs)


def step_calls(name: str, case: StepCase, pass_name: str, sets: list[StepTensors]) -> list[Call]:
    """Return a training step for each batch; all of them train one network."""
    model = make_model(name, case.kernel_size, sets[0].photo.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step(tensors: StepTensors) -> tuple[Tensor, ...]:
        loss = backpropagate(model, tensors, case.dtype == "bfloat16")
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        return (loss,)

    return [partial(step, tensors) for tensors in sets]


def step_checker(
    case: StepCase, tensors: StepTensors
) -> Callable[[Provider, tuple[Tensor, ...]], float]:
    """Return what tells how far a provider's gradient is off, as a multiple of its budget.

    The budget is how far the naive filter's gradient moves when every weight is off by one
    rounding, or what sums over all pixels are off by, times `SLACK`.

    Args:
        case: the problem.
        tensors: the batch.

    Returns:
        A function of a provider and its outputs; raises WrongResultError.
    """
    device = tensors.photo.device

    def gradient(model: "DKPN") -> Tensor:
        with matrix_precision(IEEE):
            backpropagate(model, tensors, autocast=False)
        parts = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return torch.cat([part.double().flatten() for part in parts])

    naive = make_model(STEP_NAIVE, case.kernel_size, device)
    expected, unit = gradient(naive), unit_roundoff(torch.float32)
    move_weights(naive, unit)
    moved = (gradient(naive) - expected).norm() + unit * math.sqrt(case.pixels) * expected.norm()

    def check(provider: Provider, outputs: tuple[Tensor, ...]) -> float:
        (loss,) = outputs
        actual = gradient(make_model(provider.name, case.kernel_size, device))
        ratio = ((actual - expected).norm() / (SLACK * moved)).item()
        if not loss.isfinite():
            raise WrongResultError(f"the loss is {loss.item()}")
        if not ratio <= 1:
            raise WrongResultError(f"gradient: the error's norm is {ratio:.3g} times its budget")
        return ratio

    return check


def step_bytes(filters: int, case: StepCase, pass_name: str, device: torch.device) -> int:
    """Features of the network, and tensors of the filters' size, three each for the backward."""
    filter_bytes = 4 * case.pixels * case.taps
    return 4 * FEATURE_FLOATS * case.pixels + 3 * filters * filter_bytes


def _refuses_step(case: Any, pass_name: str, device: torch.device) -> str | None:
    """Say what of the network's dependencies is not here: the filters need none of them."""
    try:
        import dkpn.losses
        import dkpn.model  # noqa: F401
    except ModuleNotFoundError as error:
        return f"the network needs the package {error.name}, which is not installed"
    return None


def _step_provider(name: str, filters: int, role: str) -> Provider:
    return Provider(
        name, partial(step_calls, name), partial(step_bytes, filters), _refuses_step, role=role
    )


STEP_PROVIDERS = [
    _step_provider(STEP_FUSED, 2, OWN),
    _step_provider(STEP_HEAD, 1, OWN),
    # columns, and their products with the filters, of three channels
    _step_provider(STEP_NAIVE, 2 + 2 * 3, ALTERNATIVE),
]
