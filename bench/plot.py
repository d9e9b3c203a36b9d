"""Results as a picture: every provider's time relative to kpnops, losses left of the line."""

import os
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")  # no display, and no window where there is one

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.cases import PASSES
from bench.providers import KPNOPS, PROVIDERS
from bench.report import case_title, duration, hardware_line
from bench.results import Results, Row

SYMBOLS = {
    provider.name: (symbol, f"C{index}")
    for index, (provider, symbol) in enumerate(zip(PROVIDERS, "osDv^P+x", strict=True))
}


class Mark(NamedTuple):
    """One provider on one case: seconds."""

    row: Row
    median: float
    lower: float
    upper: float


def plot(results: Results, path: Path) -> None:
    """Draw one panel per pass, one line per case, one mark per provider with its quartiles.

    Args:
        results: a run in which kpnops was measured at least once.
        path: the PNG file; replaced only once the new one is whole.
    """
    lines = {name: _lines(results.rows, name) for name in PASSES}
    passes = [name for name in PASSES if lines[name]]
    height = 1.9 + 0.5 * max(len(lines[name]) for name in passes)
    figure, panels = plt.subplots(
        1, len(passes), figsize=(7 * len(passes), height), squeeze=False, layout="constrained"
    )
    for axes, pass_name in zip(panels[0], passes, strict=True):
        _draw_panel(axes, lines[pass_name])
        axes.set_title(f"{pass_name}: time over kpnops's (shaded: faster)", fontsize="medium")
    handles = {
        label: handle
        for axes in panels[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.suptitle(textwrap.fill(hardware_line(results), 70 * len(passes)), fontsize="small")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=110)
    plt.close(figure)
    os.replace(partial, path)


def _lines(rows: list[Row], pass_name: str) -> list[list[Mark]]:
    """Return the marks of each case in which kpnops was measured, kpnops's own first."""
    cases: dict[str, list[Mark]] = {}
    for row in rows:
        if row.pass_name != pass_name or row.median is None or row.quartiles is None:
            continue
        marks = cases.setdefault(row.case.name, [])
        marks.append(Mark(row, row.median, *row.quartiles))
    lines = [
        sorted(marks, key=lambda mark: mark.row.provider != KPNOPS) for marks in cases.values()
    ]
    return [marks for marks in lines if marks[0].row.provider == KPNOPS]


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
    axes.set_xlim(min(0.5, left), right)
    axes.axvspan(axes.get_xlim()[0], 1.0, color="0.93", zorder=0)
    axes.axvline(1.0, color="black", linewidth=0.8)
    labels = [
        f"{case_title(marks[0].row.case)}\nkpnops: {duration(marks[0].median)}" for marks in lines
    ]
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", which="major", color="0.85")
    axes.set_axisbelow(True)
