"""`kpnops.predict_filter` against routes that store the logits, forward and forward + backward."""

import pytest

from bench.cases import COMPARED_PASSES
from bench.goal import Goal
from bench.head_cases import IEEE, HeadCase, all_head_cases, cpu_head_cases
from bench.head_goals import HEAD_CPU_GOALS
from bench.head_providers import HEAD_PROVIDERS
from bench.measure import Measurement
from bench.replay import judge, replay


def chosen(device: str, full: bool) -> tuple[list[HeadCase], tuple[str, ...], list[str]]:
    """Return cases, passes and providers of a run."""
    names = [provider.name for provider in HEAD_PROVIDERS]
    if device == "cuda":
        return all_head_cases(), COMPARED_PASSES, names
    # A CPU has float32 products only.
    more = all_head_cases((IEEE,)) if full else []
    return [*cpu_head_cases(), *more], COMPARED_PASSES, names


def bench_predict_filter(measurement: Measurement, benchmark) -> None:
    replay(measurement, benchmark)


@pytest.mark.parametrize("goal", HEAD_CPU_GOALS, ids=lambda goal: goal.title)
def bench_head_goals(request: pytest.FixtureRequest, goal: Goal) -> None:
    judge(request.config, goal)
