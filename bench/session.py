"""What one run of pytest has measured so far."""

from pathlib import Path

import pytest
import torch

from bench.cases import Case
from bench.measure import Measurement, measure_group
from bench.providers import PROVIDERS
from bench.results import Header, Results, Row, make_header
from bench.timing import copy_rate

SECONDS_PER_ROW = 0.5


class Measurements:
    """All rows of a session; keeps the durations of the last group only."""

    def __init__(self, device: torch.device):
        self.device = device
        self.rows: list[Row] = []
        self.files: list[Path] = []
        self._header: Header | None = None
        self._group: tuple[Case, str] | None = None
        self._measurements: dict[str, Measurement] = {}

    def of(
        self, case: Case, pass_name: str, provider: str, selected: set[str], timed: bool
    ) -> Measurement:
        """Return one provider's measurement, measuring its whole group the first time.

        Args:
            case: the problem.
            pass_name: one of `cases.PASSES`.
            provider: whose measurement.
            selected: names of the providers that take part.
            timed: whether to time after checking.

        Returns:
            The measurement.
        """
        if self._group != (case, pass_name):
            self._measurements = {}
            chosen = [candidate for candidate in PROVIDERS if candidate.name in selected]
            seconds = SECONDS_PER_ROW if timed else 0.0
            self._measurements = measure_group(chosen, case, pass_name, self.device, seconds)
            self._group = (case, pass_name)
            if timed:
                self.rows += [measurement.row for measurement in self._measurements.values()]
        return self._measurements[provider]

    def results(self) -> Results:
        """Return everything measured so far."""
        if self._header is None:
            self._header = make_header(self.device, copy_rate(self.device))
        return Results(self._header, self.rows)


MEASUREMENTS = pytest.StashKey[Measurements]()
