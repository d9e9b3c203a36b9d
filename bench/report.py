"""Results as text: the table of a terminal, the table of a README, the report of a device.

python -m bench.report bench/results/cpu-2core.json           the README's table
python -m bench.report bench/results/cpu-2core.json --write   a report and plots beside the file
python -m bench.report --readme README.md                     its tables from the committed files
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from bench.cases import CONTIGUOUS, FORWARD, FORWARD_BACKWARD, Case
from bench.goal import outcomes_of
from bench.goals import goals_for
from bench.providers import EAGER_UNFOLD, KPNOPS
from bench.report_markdown import full_report
from bench.results import (
    ALTERNATIVE,
    DEVICE,
    MEASURED,
    WALL,
    YARDSTICK,
    Results,
    Row,
    groups_of,
    load,
)
from bench.text import (
    aligned,
    case_title,
    duration,
    duration_or_dash,
    goal_text,
    hardware_line,
    markdown_table,
    number,
    share,
)
from bench.workloads import SUBJECTS

RESULTS_FOLDER = Path(__file__).parent / "results"
# The results that a README shows, by the name of its block.
README_FILES = {"cpu": ("cpu-2core",), "gpu": ("nvidia-h200", "nvidia-h100")}
UNMEASURED = "**Not measured yet**: no results of a GPU have been committed."

TERMINAL_HEADINGS = [
    "",
    "median",
    "quartiles",
    "/ ours",
    "GB/s",
    "of copy",
    "peak MiB",
    "saved MiB",
    "first call",
    "error",
]
README_HEADINGS = [
    "input, kernel size, channel filter",
    "pass",
    "kpnops",
    "of a copy",
    "best alternative",
    "speed-up over it",
    "speed-up over eager unfold",
    "peak MiB: kpnops",
    "best alternative",
    "eager unfold",
]


def terminal_report(results: Results) -> str:
    """Return all rows, grouped by case and pass, with the goals and a legend.

    Args:
        results: a run.

    Returns:
        The lines of the report.
    """
    lines = [hardware_line(results)]
    for name, rows in groups_of(results.rows).items():
        ours = next((row.milliseconds for row in rows if row.provider in SUBJECTS), None)
        cells = [_terminal_cells(row, ours) for row in rows if row.status == MEASURED]
        lines += ["", name, *aligned([TERMINAL_HEADINGS, *cells] if cells else [])]
        lines += [
            f"  {row.provider}: {row.status}, {row.reason}"
            for row in rows
            if row.status != MEASURED
        ]
    lines += [
        "",
        "/ ours: median over ours. GB/s: bytes that no implementation can avoid over",
        "the median; of photos MP/s, million pixels over the median.",
        "Of copy: the time of a copy of as many bytes over the median. Peak: memory of",
        "one call beyond its arguments. Saved: kept for the backward beyond arguments and result.",
        "Error: the largest, over its rounding budget. (y): a yardstick, does something else.",
        *goal_lines(results),
    ]
    return "\n".join(lines)


def _terminal_cells(row: Row, ours: float | None) -> list[str]:
    quartiles = "–"
    if row.quartiles is not None:
        quartiles = " … ".join(duration(quartile) for quartile in row.quartiles)
    ratio = None if row.milliseconds is None or ours is None else row.milliseconds / ours
    return [
        f"  {row.provider}{' (y)' if row.role == YARDSTICK else ''}",
        duration_or_dash(row.milliseconds),
        quartiles,
        number(ratio),
        _rate(row),
        share(row.fraction_of_copy),
        number(row.peak_mebibytes, 1),
        number(row.saved_mebibytes, 1),
        duration_or_dash(row.first_call_milliseconds),
        number(row.error),
    ]


def _rate(row: Row) -> str:
    """Bytes in a second, or the pixels of photos."""
    if row.megapixels_per_second is not None:
        return f"{row.megapixels_per_second:.3g} MP/s"
    return number(row.gigabytes_per_second, 1)


def goal_lines(results: Results) -> list[str]:
    """Return one line for each goal and row: met or missed, asked and reached.

    Args:
        results: a run.

    Returns:
        The lines; a goal of which nothing was measured has one that says so.
    """
    lines = []
    for goal in goals_for(results.header.hardware.kind):
        outcomes = outcomes_of(goal, results.rows)
        for outcome in outcomes:
            met = "met" if outcome.met else "MISSED"
            lines.append(f"goal {met}: {goal.title}: {goal_text(outcome)}")
        if not outcomes:
            lines.append(f"goal not measured: {goal.title}")
    return lines


def readme_table(results: Results) -> str:
    """Return one line per case and pass: kpnops, the best alternative, eager unfold, peak memory.

    Args:
        results: a run; of a GPU's the main rows are shown.

    Returns:
        A Markdown table under a line that says what it was measured on; losses are in it too.
    """
    shown = [
        row
        for row in results.rows
        if row.pass_name in (FORWARD, FORWARD_BACKWARD) and _is_for_readme(row)
    ]
    rows = [cells for group in groups_of(shown).values() if (cells := _readme_cells(group))]
    line = hardware_line(replace(results, rows=shown))
    return "\n".join([line, "", *markdown_table(README_HEADINGS, rows, left=2)])


def _is_for_readme(row: Row) -> bool:
    """Whether a README shows a row: all filters of a CPU, of a GPU the main ones."""
    case = row.case
    if not isinstance(case, Case):
        return False
    if row.clock == WALL:
        return True
    return (
        row.clock == DEVICE
        and (case.batch, case.channels, case.height) in ((1, 3, 1080), (1, 64, 512))
        and case.kernel_size in (3, 5)
        and (case.channel_filter, case.layout, case.normalize) == ("pixel", CONTIGUOUS, None)
    )


def _readme_cells(rows: list[Row]) -> list[str] | None:
    """Return the cells of one case and pass, or None if kpnops was not measured."""
    measured = {row.provider: row for row in rows if row.milliseconds is not None}
    ours = measured.get(KPNOPS)
    if ours is None or ours.milliseconds is None:
        return None
    others = [row for row in measured.values() if row.role == ALTERNATIVE]
    first = [case_title(ours.case), ours.pass_name, duration(ours.milliseconds)]
    first.append(share(ours.fraction_of_copy))
    if not others:
        return [*first, "none ran", "–", "–", number(ours.peak_mebibytes, 1), "–", "–"]
    best = min(others, key=lambda row: row.milliseconds or 0.0)
    unfold = measured.get(EAGER_UNFOLD)
    return [
        *first,
        f"{best.provider} {duration_or_dash(best.milliseconds)}",
        _speed_up(best, ours),
        "–" if unfold is None else _speed_up(unfold, ours),
        number(ours.peak_mebibytes, 1),
        number(best.peak_mebibytes, 1),
        "–" if unfold is None else number(unfold.peak_mebibytes, 1),
    ]


def _speed_up(alternative: Row, ours: Row) -> str:
    assert alternative.milliseconds is not None
    assert ours.milliseconds is not None
    ratio = alternative.milliseconds / ours.milliseconds
    return f"{ratio:.2f}×" + (" (slower)" if ratio < 1 else "")


def write_report(results: Results, path: Path) -> list[Path]:
    """Write the Markdown report and the plots of results beside their JSON file.

    Args:
        results: what was measured.
        path: the JSON file.

    Returns:
        The files.
    """
    from bench.plot import plots

    pictures = plots(results, path)
    report = path.with_suffix(".md")
    partial = report.with_name(report.name + ".partial")
    partial.write_text(full_report(results, [file.name for file in pictures]), encoding="utf-8")
    os.replace(partial, report)
    return [report, *pictures]


def with_tables(text: str, folder: Path = RESULTS_FOLDER) -> str:
    """Return a README's text with the tables of committed results between their markers.

    Args:
        text: has blocks `<!-- bench:cpu -->` … `<!-- /bench:cpu -->`, and of gpu likewise.
        folder: where the results are.

    Returns:
        The text; a block of which no results are committed says so.
    """
    for block, names in README_FILES.items():
        start, end = f"<!-- bench:{block} -->\n", f"<!-- /bench:{block} -->"
        if start not in text:
            continue
        paths = [path for name in names if (path := folder / f"{name}.json").exists()]
        tables = [readme_table(load(path)) for path in paths] or [UNMEASURED]
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = before + start + "\n\n".join(tables) + "\n" + end + after
    return text


def main(arguments: list[str] | None = None) -> int:
    """Print the README's table of one results file, or write reports.

    Args:
        arguments: command line without the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 2 where a file is missing or not of the schema.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=main.__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="a JSON file in bench/results/")
    parser.add_argument("--write", action="store_true", help="write report and plots beside it")
    parser.add_argument("--readme", type=Path, help="put the tables into this file")
    options = parser.parse_args(arguments)
    if options.file is None and options.readme is None:
        parser.error("give a results file or --readme")
    try:
        if options.readme is not None:
            text = options.readme.read_text(encoding="utf-8")
            options.readme.write_text(with_tables(text), encoding="utf-8")
        if options.file is not None and options.write:
            for path in write_report(load(options.file), options.file):
                print(path)
        elif options.file is not None:
            print(readme_table(load(options.file)))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
