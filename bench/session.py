"""What one run of pytest has measured so far."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.any_case import AnyCase
from bench.measure import Measurement, measure_group
from bench.results import Header, Results, Row, load, make_header, merge
from bench.running import say
from bench.timing import copy_rate
from bench.workloads import workload_of

SECONDS_PER_ROW = 0.5


class Measurements:
    """All rows of a session; keeps the durations of the last group only."""

    def __init__(self, device: torch.device):
        self.device = device
        self.rows: list[Row] = []
        self.files: list[Path] = []
        self._header: Header | None = None
        self._group: tuple[AnyCase, str] | None = None
        self._measurements: dict[str, Measurement] = {}

    def of(
        self, case: AnyCase, pass_name: str, provider: str, selected: set[str], timed: bool
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
            candidates = workload_of(case).providers
            chosen = [candidate for candidate in candidates if candidate.name in selected]
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


def open_results(path: Path, header: Header) -> Results:
    """Return the file's results under a new header, or none where other versions measured them.

    Args:
        path: the file; need not exist.
        header: of this run.

    Returns:
        Results to go on with; the tests' summary is kept while the sources are the same.
    """
    try:
        old = load(path)
    except FileNotFoundError:
        return Results(header, [])
    except ValueError as error:
        say(f"{error}; starting anew")
        return Results(header, [])
    same = ("versions", "driver", "hardware")
    if any(getattr(old.header, name) != getattr(header, name) for name in same):
        say(f"{path} was measured with other versions or hardware; starting anew")
        return Results(header, [])
    return Results(replace(header, tests=old.header.tests), old.rows)


def check_mergeable(path: Path, device: torch.device) -> None:
    """Raise ValueError where rows measured here do not belong into a file.

    Args:
        path: a results file; need not exist.
        device: where rows will be measured.

    Raises:
        ValueError: the file is of another schema, other hardware or versions; says which.
    """
    if not path.is_file():
        return
    old, here = load(path).header, make_header(device)
    for name in ("hardware", "versions", "driver"):
        found, expected = getattr(here, name), getattr(old, name)
        if found != expected:
            raise ValueError(
                f"--merge: {path} was measured with the {name} {expected}, here it is {found}; "
                "measure all of it again without --merge"
            )


def merged_results(results: Results, path: Path) -> Results:
    """Return a run's results with the rows of a file, if there is one, that it did not measure."""
    if not path.is_file():
        return results
    return replace(results, rows=merge(load(path).rows, results.rows))


MEASUREMENTS = pytest.StashKey[Measurements]()
