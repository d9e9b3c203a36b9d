"""The report of one device: goals, every row, what was not measured and why."""

from collections import Counter

from bench.cases import PASSES, Case
from bench.goal import Outcome, outcomes_of
from bench.goals import goals_for
from bench.providers import KPNOPS, UNFUSED
from bench.report_head import head_sections
from bench.results import (
    ALTERNATIVE,
    COLD,
    DEVICE,
    GRAPH,
    HOST,
    MEASURED,
    WALL,
    WARM,
    GpuTests,
    Results,
    Row,
    groups_of,
)
from bench.text import (
    OTHER_RUN,
    case_title,
    duration,
    duration_or_dash,
    goal_value,
    hardware_line,
    markdown_table,
    number,
    share,
    time_ratio,
)

CLOCK_TITLES = {
    WALL: "wall clock",
    DEVICE: "device events",
    GRAPH: "replays of CUDA graphs",
}


def full_report(results: Results, pictures: list[str]) -> str:
    """Return the report.

    Args:
        results: of one device.
        pictures: names of the plots beside it.

    Returns:
        Markdown; losses and failures are in it like everything else.
    """
    header = results.header
    copy = header.copy_gigabytes_per_second
    lines = [
        f"# Benchmarks: {header.device}",
        "",
        "Written by `python -m bench.report --write` from the JSON file beside it.",
        "",
        hardware_line(results),
        "",
        f"A device copy moves {number(copy, 0)} GB/s, reads plus writes. "
        + _tests_line(header.tests),
        "",
        "## Goals",
        "",
        *_goal_table(results),
        *_missed(results),
    ]
    for clock, title in CLOCK_TITLES.items():
        for pass_name in PASSES:
            rows = [row for row in results.rows if (row.clock, row.pass_name) == (clock, pass_name)]
            rows = [row for row in rows if isinstance(row.case, Case)]
            if rows:
                lines += ["", f"## {pass_name}, {title}", "", *_rows_table(rows)]
    lines += head_sections(results.rows)
    if any(OTHER_RUN in line for line in lines):
        lines += ["", f"{OTHER_RUN.strip()}: the two were measured in different runs."]
    lines += [*_call_tables(results.rows), *_unmeasured(results.rows)]
    lines += ["", "## Plots", ""] if pictures else []
    lines += [f"![{name}]({name})" for name in pictures]
    return "\n".join(lines) + "\n"


def _tests_line(tests: GpuTests | None) -> str:
    if tests is None:
        return "The GPU tests were not run."
    state = "" if tests.complete else " (not all of them ran)"
    line = (
        f"GPU tests: {tests.passed} passed, {tests.failed} failed, {tests.skipped} skipped{state}"
    )
    named = "".join(f" `{name}`" for name in tests.failures)
    return f"{line}, {tests.date[:10]}, sources {tests.source}." + (
        f" Failed:{named}." if named else ""
    )


def _worst(outcomes: list[Outcome]) -> Outcome:
    sign = 1 if not outcomes[0].goal.at_most else -1
    return min(outcomes, key=lambda outcome: sign * outcome.reached)


def _goal_table(results: Results) -> list[str]:
    cells = []
    for goal in goals_for(results.header.hardware.kind):
        outcomes = outcomes_of(goal, results.rows)
        asked = f"{'≤' if goal.at_most else '≥'} {goal_value(goal, goal.asked)}"
        if not outcomes:
            cells.append([goal.title, asked, "not measured", "", ""])
            continue
        met = sum(outcome.met for outcome in outcomes)
        worst = _worst(outcomes)
        verdict = "met" if met == len(outcomes) else f"missed in {len(outcomes) - met}"
        cells.append(
            [
                goal.title,
                asked,
                f"{verdict} of {len(outcomes)}" if met < len(outcomes) else f"met in all {met}",
                goal_value(goal, worst.reached),
                case_title(worst.row.case),
            ]
        )
    return markdown_table(["goal", "asked", "rows", "worst", "where"], cells)


def _missed(results: Results) -> list[str]:
    cells = [
        [
            outcome.goal.title,
            case_title(outcome.row.case),
            goal_value(outcome.goal, outcome.goal.asked),
            goal_value(outcome.goal, outcome.reached),
        ]
        for goal in goals_for(results.header.hardware.kind)
        for outcome in outcomes_of(goal, results.rows)
        if not outcome.met
    ]
    if not cells:
        return []
    headings = ["goal", "row", "asked", "reached"]
    return ["", "### Missed", "", *markdown_table(headings, cells, left=2)]


def _rows_table(rows: list[Row]) -> list[str]:
    headings = [
        "input, kernel size, channel filter",
        "kpnops",
        "quartiles",
        "GB/s",
        "of a copy",
        "best alternative",
        "÷ kpnops",
        "softmax + kpnops ÷ kpnops",
        "peak MiB",
        "beyond results",
        "error ÷ budget",
        "commit",
    ]
    cells = []
    for group in groups_of(rows).values():
        by_name = {row.provider: row for row in group if row.milliseconds is not None}
        ours = by_name.get(KPNOPS)
        if ours is None or ours.milliseconds is None or ours.quartiles is None:
            continue
        others = [row for row in by_name.values() if row.role == ALTERNATIVE]
        best = min(others, key=lambda row: row.milliseconds or 0.0, default=None)
        unfused = by_name.get(UNFUSED)
        cells.append(
            [
                case_title(ours.case),
                duration(ours.milliseconds),
                " … ".join(duration(quartile) for quartile in ours.quartiles),
                number(ours.gigabytes_per_second, 0),
                share(ours.fraction_of_copy),
                "–" if best is None else f"{best.provider} {duration_or_dash(best.milliseconds)}",
                time_ratio(best, ours),
                time_ratio(unfused, ours),
                number(ours.peak_mebibytes, 1),
                share(ours.memory_beyond_results),
                number(ours.error),
                ours.commit,
            ]
        )
    return markdown_table(headings, cells)


def _call_tables(rows: list[Row]) -> list[str]:
    lines = []
    for clocks, title in (((HOST,), "Host time of a call"), ((COLD, WARM), "First calls")):
        measured = [row for row in rows if row.clock in clocks and row.milliseconds is not None]
        cells = [
            [
                case_title(row.case),
                row.pass_name,
                row.clock,
                row.provider,
                duration_or_dash(row.milliseconds),
            ]
            for row in measured
        ]
        if cells:
            headings = ["input, kernel size, channel filter", "pass", "what", "who", "median"]
            lines += ["", f"## {title}", "", *markdown_table(headings, cells, left=4)]
    return lines


def _unmeasured(rows: list[Row]) -> list[str]:
    reasons = Counter(
        (row.provider, row.status, row.reason) for row in rows if row.status != MEASURED
    )
    if not reasons:
        return []
    where: dict[tuple[str, str, str], str] = {}
    for row in rows:
        where.setdefault((row.provider, row.status, row.reason), row.group)
    cells = [[*key, str(count), where[key]] for key, count in sorted(reasons.items()) if key[2]]
    headings = ["provider", "what", "why", "rows", "the first"]
    return ["", "## Not measured", "", *markdown_table(headings, cells, left=3)]
