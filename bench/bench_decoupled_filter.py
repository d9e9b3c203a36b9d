"""`kpnops.decoupled_filter` against the alternatives, forward and forward + backward."""

from collections.abc import Iterator

import pytest

from bench.cases import Case
from bench.goals import CPU_GOALS, Goal, outcomes_of
from bench.measure import Measurement
from bench.results import FAILED, SKIPPED
from bench.session import MEASUREMENTS
from bench.text import goal_text


class ReplayClock:
    """A timer for pytest-benchmark whose readings are as far apart as durations measured before."""

    def __init__(self, durations: list[float]):
        self._steps = self._readings(durations)

    @staticmethod
    def _readings(durations: list[float]) -> Iterator[float]:
        for duration in durations:
            yield 0.0  # from 0 each time: differences of a running sum would be rounded
            yield duration

    def __call__(self) -> float:
        return next(self._steps)


@pytest.fixture
def measurement(
    request: pytest.FixtureRequest, case: Case, pass_name: str, provider: str
) -> Measurement:
    """Measure the whole group with its first row, and hand pytest-benchmark this row's durations.

    pytest-benchmark times one test after the other; a slow spell of the machine would then fall on
    one provider. So all take turns within one loop, and each row is told its own durations: of the
    wall clock on a CPU, of device events on a GPU.
    """
    config = request.config
    selected = {
        str(item.callspec.params["provider"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and item.callspec.params.get("case") == case
        and item.callspec.params.get("pass_name") == pass_name
    }
    disabled = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    timed = not disabled and not hasattr(config, "workerinput")
    measured = config.stash[MEASUREMENTS].of(case, pass_name, provider, selected, timed)
    if measured.row.status == SKIPPED:
        pytest.skip(measured.row.reason)
    if measured.row.status == FAILED:
        pytest.fail(measured.row.reason, pytrace=False)
    request.node.add_marker(
        pytest.mark.benchmark(timer=ReplayClock(measured.durations), group=measured.row.group)
    )
    return measured


def bench_decoupled_filter(measurement: Measurement, benchmark) -> None:
    row = measurement.row
    benchmark.extra_info.update(
        first_call_milliseconds=row.first_call_milliseconds,
        peak_mebibytes=row.peak_mebibytes,
        saved_mebibytes=row.saved_mebibytes,
        minimal_bytes=row.minimal_bytes,
        gigabytes_per_second=row.gigabytes_per_second,
        fraction_of_copy=row.fraction_of_copy,
        error_over_budget=row.error,
    )
    benchmark.pedantic(_already_measured, rounds=max(1, len(measurement.durations)))


def _already_measured() -> None:
    """Stand for the calls that the replayed durations belong to."""


@pytest.mark.parametrize("goal", CPU_GOALS, ids=lambda goal: goal.title)
def bench_goals(request: pytest.FixtureRequest, goal: Goal) -> None:
    measurements = request.config.stash[MEASUREMENTS]
    if measurements.device.type != "cpu":
        pytest.skip("the goals are for the CPU")
    outcomes = outcomes_of(goal, measurements.rows)
    if not outcomes:
        pytest.skip("what it compares was not measured in this run")
    missed = [outcome for outcome in outcomes if not outcome.met]
    text = "\n".join(goal_text(outcome) for outcome in missed)
    if missed and not any(outcome.quiet for outcome in missed):
        pytest.skip(text)
    if missed:
        pytest.fail(text, pytrace=False)
