"""Results as text: the table of a terminal, and the table of a README.

    python -m bench.report bench/results/cpu-2core.json

prints the README's table.
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path

from bench.cases import FORWARD, Case
from bench.providers import EAGER_UNFOLD, KPNOPS
from bench.results import MEASURED, QUIET, GoalOutcome, Results, Row, load

TERMINAL_HEADINGS = [
    "",
    "median",
    "quartiles",
    "/ kpnops",
    "/ best other",
    "GB/s",
    "of copy",
    "peak MiB",
    "saved MiB",
    "first call",
    "error",
]


def terminal_report(results: Results) -> str:
    """Return all rows, grouped by case and pass, with the goals and a legend.

    Args:
        results: a run.

    Returns:
        The lines of the report.
    """
    lines = [hardware_line(results)]
    for group, rows in groupby(results.rows, key=lambda row: row.group):
        cells, notes = [], []
        for row in rows:
            if row.status == MEASURED:
                cells.append(_terminal_cells(row))
            else:
                notes.append(f"  {row.provider}: {row.status}, {row.reason}")
        lines += ["", group, *_aligned([TERMINAL_HEADINGS, *cells] if cells else []), *notes]
    lines += [
        "",
        "/ kpnops, / best other: median over that of kpnops, over that of the fastest alternative",
        "(kpnops itself: below 1 is a win). GB/s: bytes that no implementation can avoid over the",
        "median. Of copy: the time of a copy of as many bytes over the median. Peak: bytes of one",
        "call beyond its arguments. Saved: kept for the backward beyond arguments and result.",
        "Error: the largest, over its rounding budget. (y): a yardstick, does something else.",
        *goal_lines(results),
    ]
    return "\n".join(lines)


def goal_lines(results: Results) -> list[str]:
    """Return one line for each goal: met or missed, asked and reached.

    Args:
        results: a run.

    Returns:
        The lines; none on a GPU.
    """
    return [
        f"goal {'met' if goal.met else 'MISSED'}: {goal.name}: {goal_text(goal)}"
        for goal in results.goals
    ]


def goal_text(goal: GoalOutcome) -> str:
    """Return what was reached and what was asked, and who else was busy.

    Args:
        goal: the outcome.

    Returns:
        Such as `31.7x faster than eager unfold (asked: 10x)`.
    """
    text = f"{goal.reached:.1f}x faster than eager unfold (asked: {goal.asked:g}x)"
    if not goal.quiet:
        text += "; the machine was busy with other things"
    return text


def hardware_line(results: Results) -> str:
    """Return hardware, threads, versions and date in one line.

    Args:
        results: a run.

    Returns:
        The line; it ends in a warning if other processes ran meanwhile.
    """
    hardware = results.hardware
    where = hardware.name
    if hardware.device == "cpu":
        where += f", {hardware.cores} cores, {hardware.threads} threads"
    named = [f"{name} {version}" for name, version in results.versions.items() if name != "system"]
    line = f"{where}; {', '.join(named)}; {results.date[:10]}"
    loads = [row.other_load for row in results.rows if row.other_load is not None]
    if loads and max(loads) > QUIET:
        line += f"; BUSY MACHINE: other processes kept up to {max(loads):.1f} cores busy"
    return line


def markdown_report(results: Results) -> str:
    """Return one line per case and pass: kpnops, the best alternative, eager unfold, peak memory.

    Args:
        results: a run.

    Returns:
        A Markdown table under a line that says what it was measured on; losses are in it too.
    """
    headings = [
        "input, kernel size, channel filter",
        "pass",
        "kpnops",
        "best alternative",
        "speed-up over it",
        "speed-up over eager unfold",
        "peak MiB: kpnops",
        "best alternative",
        "eager unfold",
    ]
    lines = [hardware_line(results), "", _markdown_line(headings)]
    lines.append(_markdown_line(["---"] * 2 + ["---:"] * (len(headings) - 2)))
    for _, group in groupby(results.rows, key=lambda row: row.group):
        cells = _summary_cells(list(group))
        if cells is not None:
            lines.append(_markdown_line(cells))
    return "\n".join(lines)


def case_title(case: Case) -> str:
    """Return a case as a reader wants it.

    Args:
        case: the case.

    Returns:
        Such as `1×3×512×512, K = 5, per pixel`, with the data types unless they are float32.
    """
    title = f"{case.batch}×{case.channels}×{case.height}×{case.width}, K = {case.kernel_size}"
    title += f", per {case.channel_filter}"
    if case.input_dtype != case.filter_dtype:
        return f"{title}, {case.input_dtype} with {case.filter_dtype} filters"
    return title if case.input_dtype == "float32" else f"{title}, {case.input_dtype}"


def duration(seconds: float) -> str:
    """Return a duration in ms, or µs below one of them, with three digits.

    Args:
        seconds: the duration.

    Returns:
        Such as `2.91 ms`.
    """
    scaled, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "µs")
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {unit}"


def _summary_cells(rows: list[Row]) -> list[str] | None:
    """Return the cells of one case and pass, or None if kpnops was not measured."""
    measured = {row.provider: row for row in rows if row.median is not None and not row.yardstick}
    kpnops = measured.pop(KPNOPS, None)
    if kpnops is None or kpnops.median is None:
        return None
    first = [case_title(kpnops.case), kpnops.pass_name, duration(kpnops.median)]
    if not measured:
        return [*first, "none ran", "–", "–", _mebibytes(kpnops.peak_bytes), "–", "–"]
    best = min(measured.values(), key=lambda row: row.median or 0.0)
    unfold = measured.get(EAGER_UNFOLD)
    return [
        *first,
        f"{best.provider} {_duration_or_dash(best.median)}",
        _speed_up(best),
        "–" if unfold is None else _speed_up(unfold),
        _mebibytes(kpnops.peak_bytes),
        _mebibytes(best.peak_bytes),
        "–" if unfold is None else _mebibytes(unfold.peak_bytes),
    ]


def _speed_up(alternative: Row) -> str:
    if alternative.time_over_kpnops is None:
        return "–"
    return f"{alternative.time_over_kpnops:.2f}×" + (
        " (slower)" if alternative.time_over_kpnops < 1 else ""
    )


def _terminal_cells(row: Row) -> list[str]:
    quartiles = "–"
    if row.quartiles is not None:
        quartiles = " … ".join(duration(quartile) for quartile in row.quartiles)
    rate = "–" if row.bytes_per_second is None else f"{row.bytes_per_second / 1e9:.1f}"
    return [
        f"  {row.provider}{' (y)' if row.yardstick else ''}",
        _duration_or_dash(row.median),
        quartiles,
        _ratio(row.time_over_kpnops),
        _ratio(row.time_over_best_alternative),
        rate,
        "–" if row.fraction_of_copy is None else f"{100 * row.fraction_of_copy:.0f} %",
        _mebibytes(row.peak_bytes),
        _mebibytes(row.saved_bytes) if row.pass_name != FORWARD else "–",
        _duration_or_dash(row.first_call),
        _ratio(row.error),
    ]


def _duration_or_dash(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mebibytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.1f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _markdown_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Print the README's table of one results file.

    Args:
        arguments: command line without the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 2 where the file is missing or not of the schema.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=main.__doc__)
    parser.add_argument("file", type=Path, help="a JSON file in bench/results/")
    options = parser.parse_args(arguments)
    try:
        results = load(options.file)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(markdown_report(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
