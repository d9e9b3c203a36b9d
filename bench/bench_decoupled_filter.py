"""`kpnops.decoupled_filter` against the alternatives, forward and forward + backward."""

import pytest

from bench.cases import (
    COMPARED_PASSES,
    CPU_DTYPES,
    GPU_DTYPES,
    Case,
    all_cases,
    default_cpu_cases,
)
from bench.goal import Goal
from bench.goals import FILTER_CPU_GOALS
from bench.measure import Measurement
from bench.providers import PROVIDERS, UNFUSED
from bench.replay import judge, replay


def chosen(device: str, full: bool) -> tuple[list[Case], tuple[str, ...], list[str]]:
    """Return cases, passes and providers of a run."""
    # No case here has a softmax, without which this one is kpnops itself.
    names = [provider.name for provider in PROVIDERS if provider.name != UNFUSED]
    if device == "cuda":
        return all_cases(GPU_DTYPES), COMPARED_PASSES, names
    more = all_cases(CPU_DTYPES) if full else []
    return list(dict.fromkeys([*default_cpu_cases(), *more])), COMPARED_PASSES, names


def bench_decoupled_filter(measurement: Measurement, benchmark) -> None:
    replay(measurement, benchmark)


@pytest.mark.parametrize("goal", FILTER_CPU_GOALS, ids=lambda goal: goal.title)
def bench_goals(request: pytest.FixtureRequest, goal: Goal) -> None:
    judge(request.config, goal)
