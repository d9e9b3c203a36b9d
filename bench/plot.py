"""Results as pictures: ratios to ours, and on a GPU the rooflines and what time depends on."""

import os
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")  # no display, and no window where there is one

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.cases import FORWARD, FORWARD_BACKWARD, PASSES
from bench.head_providers import COMPILED_HEAD_SLICES, COMPILED_HEAD_UNFOLD, PREDICT, STORED
from bench.plot_curves import draw_channels, draw_kernel_sizes, draw_resolutions, draw_roofline
from bench.providers import PROVIDERS
from bench.results import DEVICE, GRAPH, WALL, Results, Row
from bench.text import case_title, duration, hardware_line
from bench.workloads import SUBJECTS

COMPILED_HEADS = (COMPILED_HEAD_SLICES, COMPILED_HEAD_UNFOLD)

SYMBOLS = {
    provider.name: (symbol, f"C{index}")
    for index, (provider, symbol) in enumerate(zip(PROVIDERS, "osDv^P+x*", strict=True))
} | {PREDICT: ("o", "C0"), STORED: ("h", "C1"), **dict.fromkeys(COMPILED_HEADS, ("^", "C4"))}
CLOCKS = (WALL, DEVICE, GRAPH)
# Ratios of more cases than these are drawn in several pictures.
MOST_LINES = 40


class Mark(NamedTuple):
    """One provider on one case: milliseconds."""

    row: Row
    median: float
    lower: float
    upper: float


def plots(results: Results, path: Path) -> list[Path]:
    """Draw every plot that the rows allow, beside their JSON file.

    Args:
        results: of one device.
        path: the JSON file; the pictures are called after it.

    Returns:
        The PNG files.
    """
    files = []
    for number, rows in enumerate(_ratio_parts(results.rows)):
        suffix = "" if results.header.hardware.kind == "cpu" else "-ratios"
        suffix += f"-{number + 1}" if number else ""
        file = path.with_name(f"{path.stem}{suffix}.png")
        _save(draw_ratios(results, rows), file)
        files.append(file)
    if results.header.hardware.kind == "cpu":
        return files
    for name, draw in {
        "roofline": draw_roofline,
        "kernel-size": draw_kernel_sizes,
        "channels": draw_channels,
        "resolution": draw_resolutions,
    }.items():
        figure = draw(results)
        if figure is not None:
            file = path.with_name(f"{path.stem}-{name}.png")
            _save(figure, file)
            files.append(file)
    return files


def _save(figure: Figure, path: Path) -> None:
    """Write a figure; a file is replaced only once the new one is whole."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=110)
    plt.close(figure)
    os.replace(partial, path)


def _ratio_parts(rows: list[Row]) -> list[list[Row]]:
    """Return the rows of as many cases as one picture holds, in which ours met another."""
    shown: dict[str, list[Row]] = {}
    for row in rows:
        if row.clock in CLOCKS and row.pass_name in PASSES and row.quartiles is not None:
            shown.setdefault(row.case.name, []).append(row)
    ours = [rows for rows in shown.values() if any(row.provider in SUBJECTS for row in rows)]
    compared = [rows for rows in ours if len({row.provider for row in rows}) > 2] or ours
    parts = [compared[i : i + MOST_LINES] for i in range(0, len(compared), MOST_LINES)]
    return [[row for rows in part for row in rows] for part in parts]


def draw_ratios(results: Results, rows: list[Row]) -> Figure:
    """Draw one panel per pass, one line per case, one mark per provider with its quartiles.

    Args:
        results: whose header is written above.
        rows: of cases in which ours was measured.

    Returns:
        The figure; what lies left of the line is faster than ours.
    """
    lines = {name: _lines(rows, name) for name in PASSES}
    passes = [name for name in (FORWARD, FORWARD_BACKWARD) if lines[name]]
    height = 1.9 + 0.5 * max(len(lines[name]) for name in passes)
    figure, panels = plt.subplots(
        1, len(passes), figsize=(8 * len(passes), height), squeeze=False, layout="constrained"
    )
    for axes, pass_name in zip(panels[0], passes, strict=True):
        _draw_panel(axes, lines[pass_name])
        axes.set_title(f"{pass_name}: time over ours", loc="right", fontsize="medium")
    handles = {
        label: handle
        for axes in panels[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.suptitle(
        textwrap.fill(f"{hardware_line(results)}. Shaded: faster than ours.", 80 * len(passes)),
        fontsize="small",
    )
    return figure


def _lines(rows: list[Row], pass_name: str) -> list[list[Mark]]:
    """Return the marks of each case in which ours was measured, ours first."""
    cases: dict[str, list[Mark]] = {}
    for row in rows:
        if row.pass_name != pass_name or row.milliseconds is None or row.quartiles is None:
            continue
        marks = cases.setdefault(row.case.name, [])
        marks.append(Mark(row, row.milliseconds, *row.quartiles))
    lines = [
        sorted(marks, key=lambda mark: mark.row.provider not in SUBJECTS)
        for marks in cases.values()
    ]
    return [marks for marks in lines if marks[0].row.provider in SUBJECTS]


def _draw_panel(axes: Axes, lines: list[list[Mark]]) -> None:
    labelled = set()
    for line, marks in enumerate(lines):
        unit = marks[0].median
        for place, mark in enumerate(marks):
            provider = mark.row.provider
            symbol, color = SYMBOLS[provider]
            axes.errorbar(
                mark.median / unit,
                line + 0.6 * (place + 0.5) / len(marks) - 0.3,
                xerr=[[(mark.median - mark.lower) / unit], [(mark.upper - mark.median) / unit]],
                fmt=symbol,
                color=color,
                markersize=7,
                capsize=2,
                label="" if provider in labelled else provider,
            )
            labelled.add(provider)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    left, right = axes.get_xlim()
    axes.set_xlim(min(0.5, left), max(2.0, right))
    axes.axvspan(axes.get_xlim()[0], 1.0, color="0.93", zorder=0)
    axes.axvline(1.0, color="black", linewidth=0.8)
    labels = [
        f"{case_title(marks[0].row.case)}\nours: {duration(marks[0].median)}" for marks in lines
    ]
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", which="major", color="0.85")
    axes.set_axisbelow(True)
