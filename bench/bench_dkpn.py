"""A training step of `dkpn.DKPN` with our filter, with the naive one, and with the fused head."""

from bench.measure import Measurement
from bench.replay import replay
from bench.step_cases import STEP, StepCase, cpu_step_cases, gpu_step_cases
from bench.step_operations import STEP_PROVIDERS


def chosen(device: str, full: bool) -> tuple[list[StepCase], tuple[str, ...], list[str]]:
    """Return cases, passes and providers of a run."""
    names = [provider.name for provider in STEP_PROVIDERS]
    if device == "cuda":
        return gpu_step_cases(), (STEP,), names
    more = [StepCase(1, 512, 512, kernel_size) for kernel_size in (5, 9)] if full else []
    return [*cpu_step_cases(), *more], (STEP,), names


def bench_dkpn(measurement: Measurement, benchmark) -> None:
    replay(measurement, benchmark)
