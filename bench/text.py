"""Numbers, cases and tables as text."""

from bench.any_case import AnyCase
from bench.cases import CONTIGUOUS, Case
from bench.goal import Goal, Outcome
from bench.results import QUIET, Results, Row

OTHER_RUN = " †"


def duration(milliseconds: float) -> str:
    """Return a duration in ms, or µs below one of them, with three digits.

    Args:
        milliseconds: the duration.

    Returns:
        Such as `2.91 ms`.
    """
    scaled, unit = (milliseconds, "ms") if milliseconds >= 1 else (milliseconds * 1e3, "µs")
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {unit}"


def duration_or_dash(milliseconds: float | None) -> str:
    """Return a duration, or a dash for one that was not measured."""
    return "–" if milliseconds is None else duration(milliseconds)


def share(fraction: float | None) -> str:
    """Return a fraction in percent, or a dash for one that was not measured."""
    return "–" if fraction is None else f"{100 * fraction:.0f} %"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number, or a dash for one that was not measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def case_title(case: AnyCase) -> str:
    """Return a case as a reader wants it.

    Args:
        case: the case.

    Returns:
        Such as `1×3×512×512, K = 5, per pixel`, with data types, layout and softmax where they are
        not the usual ones.
    """
    if not isinstance(case, Case):
        return case.title
    title = f"{case.batch}×{case.channels}×{case.height}×{case.width}, K = {case.kernel_size}"
    title += f", per {case.channel_filter}"
    if case.input_dtype != case.filter_dtype:
        title += f", {case.input_dtype} with {case.filter_dtype} filters"
    elif case.input_dtype != "float32":
        title += f", {case.input_dtype}"
    if case.layout != CONTIGUOUS:
        title += f", {case.layout}"
    return title if case.normalize is None else f"{title}, {case.normalize}"


def time_ratio(other: Row | None, ours: Row) -> str:
    """Return the time of another row over that of ours, and whether they are of different runs."""
    if other is None or other.milliseconds is None or ours.milliseconds is None:
        return "–"
    ratio = other.milliseconds / ours.milliseconds
    text = f"{ratio:.2f}×" + (" (slower)" if ratio < 1 else "")
    return text if other.source == ours.source else text + OTHER_RUN


def hardware_line(results: Results) -> str:
    """Return hardware, threads, versions, commits and last date of the rows in one line.

    Args:
        results: rows, of one run or of several that were merged.

    Returns:
        The line; it ends in a warning if other processes ran meanwhile.
    """
    header = results.header
    where = header.hardware.name
    if header.hardware.kind == "cpu":
        where += f", {header.hardware.cores} cores, {header.hardware.threads} threads"
    named = [f"{name} {version}" for name, version in header.versions.items() if name != "system"]
    if header.driver is not None:
        named.append(f"driver {header.driver}")
    commits = list(dict.fromkeys(row.commit for row in results.rows if row.commit))
    date = max((row.date for row in results.rows if row.date), default=header.date)
    named_commits = ", ".join(commits or [header.commit])
    line = f"{where}; {', '.join(named)}; commit {named_commits}; {date[:10]}"
    loads = [row.other_load for row in results.rows if row.other_load is not None]
    # A GPU's clock does not hear what the host's other processes do.
    if header.hardware.kind == "cpu" and loads and max(loads) > QUIET:
        line += f"; BUSY MACHINE: other processes kept up to {max(loads):.1f} cores busy"
    return line


def goal_value(goal: Goal, value: float) -> str:
    """Return a number in the goal's unit, such as `≥ 1.5×` without the sign."""
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{text}{goal.unit if goal.unit == '×' else ' ' + goal.unit}"


def goal_text(outcome: Outcome) -> str:
    """Return what was reached, what was asked, of which row, and whether others were busy.

    Args:
        outcome: of one row.

    Returns:
        Such as `31.7× (asked: ≥ 15×), 1×3×512×512, K = 5, per pixel`.
    """
    goal = outcome.goal
    sign = "≤" if goal.at_most else "≥"
    text = f"{goal_value(goal, outcome.reached)} (asked: {sign} {goal_value(goal, goal.asked)})"
    text += f", {case_title(outcome.row.case)}"
    if not outcome.quiet and goal.kind == "cpu":
        text += "; the machine was busy with other things"
    return text


def aligned(rows: list[list[str]]) -> list[str]:
    """Return a table's lines, the first column flush left, the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def markdown_table(headings: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Return a Markdown table.

    Args:
        headings: one for each column.
        rows: cells.
        left: how many columns are flush left; the others are numbers.

    Returns:
        Its lines.
    """
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]
