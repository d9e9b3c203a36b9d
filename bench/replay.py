"""Durations that were measured before, as rows of pytest-benchmark; goals, as its tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench.goal import Goal, outcomes_of
from bench.measure import Measurement
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


def replay(measurement: Measurement, benchmark: Any) -> None:
    """Hand a measured row to pytest-benchmark."""
    row = measurement.row
    benchmark.extra_info.update(
        first_call_milliseconds=row.first_call_milliseconds,
        peak_mebibytes=row.peak_mebibytes,
        saved_mebibytes=row.saved_mebibytes,
        minimal_bytes=row.minimal_bytes,
        gigabytes_per_second=row.gigabytes_per_second,
        megapixels_per_second=row.megapixels_per_second,
        peak_mebibytes_per_megapixel=row.peak_mebibytes_per_megapixel,
        fraction_of_copy=row.fraction_of_copy,
        error_over_budget=row.error,
    )
    benchmark.pedantic(_already_measured, rounds=max(1, len(measurement.durations)))


def _already_measured() -> None:
    """Stand for the calls that the replayed durations belong to."""


def judge(config: pytest.Config, goal: Goal) -> None:
    """Fail where rows of this run miss a goal of the CPU; skip where there is nothing to judge."""
    measurements = config.stash[MEASUREMENTS]
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
