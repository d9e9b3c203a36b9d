"""A goal, and what rows reach of it."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.results import ALTERNATIVE, QUIET, Row, groups_of

Covers = Callable[[Row], bool]
Reach = Callable[[Row, list[Row]], float | None]


@dataclass(frozen=True)
class Goal:
    """A number that is asked for of all rows of a kind."""

    title: str
    kind: str  # "cpu" or "cuda"
    asked: float
    unit: str  # "%", "×", "ms", "µs" or "MB"
    covers: Covers  # whether it is about this row of ours
    reach: Reach  # from that row and its whole group
    at_most: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one row reached of a goal."""

    goal: Goal
    row: Row
    reached: float
    quiet: bool  # whether the machine had nothing else to do

    @property
    def met(self) -> bool:
        """Whether it is what was asked for, or better."""
        if self.goal.at_most:
            return self.reached <= self.goal.asked
        return self.reached >= self.goal.asked


def ratio_to(names: tuple[str, ...] | None) -> Reach:
    """Return what gives the fastest of some providers' time over the row's.

    Args:
        names: who counts; None counts every alternative.

    Returns:
        A function of a row and its group; None where none of them was measured.
    """

    def ratio(row: Row, group: list[Row]) -> float | None:
        others = [
            other.milliseconds
            for other in group
            if other.milliseconds is not None
            and (other.role == ALTERNATIVE if names is None else other.provider in names)
        ]
        if row.milliseconds is None or not others:
            return None
        return min(others) / row.milliseconds

    return ratio


def outcomes_of(goal: Goal, rows: list[Row]) -> list[Outcome]:
    """Return what each row that a goal is about reached.

    Args:
        goal: the goal.
        rows: of one device.

    Returns:
        The outcomes; none where nothing was measured.
    """
    outcomes = []
    for group in groups_of(rows).values():
        quiet = all((row.other_load or 0.0) <= QUIET for row in group)
        for row in group:
            if row.milliseconds is None or not goal.covers(row):
                continue
            reached = goal.reach(row, group)
            if reached is not None:
                outcomes.append(Outcome(goal, row, reached, quiet))
    return outcomes
