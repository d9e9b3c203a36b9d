"""What a GPU's rows say of limits: a roofline, and what time depends on."""

import textwrap
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.any_case import AnyCase
from bench.cases import BACKWARD, CONTIGUOUS, FORWARD, FORWARD_BACKWARD, Case, minimal_bytes
from bench.providers import (
    COMPILED_SLICES,
    COMPILED_UNFOLD,
    DEVICE_COPY,
    EAGER_SLICES,
    EAGER_UNFOLD,
    KPNOPS,
)
from bench.results import DEVICE, Results, Row
from bench.text import hardware_line

# A name is drawn the same in every panel.
STYLES = {
    KPNOPS: ("o-", "C0"),
    EAGER_UNFOLD: ("s--", "C1"),
    EAGER_SLICES: ("D--", "C2"),
    COMPILED_UNFOLD: ("v--", "C3"),
    COMPILED_SLICES: ("^--", "C4"),
    DEVICE_COPY: ("x:", "black"),
}
PASS_MARKS = {FORWARD: "o", BACKWARD: "s", FORWARD_BACKWARD: "D"}
DTYPE_COLORS = {"float32": "C0", "bfloat16": "C1", "bfloat16+float32": "C2"}

# One panel: its title, which case it shows, and the number along the axis.
Panel = tuple[str, Callable[[AnyCase], bool], Callable[[AnyCase], int]]


def _usual(case: AnyCase) -> bool:
    return (case.layout, case.normalize) == (CONTIGUOUS, None)


def draw_roofline(results: Results) -> Figure | None:
    """Draw GB/s against arithmetic intensity: the copy's rate is the roof.

    Args:
        results: of a GPU.

    Returns:
        The figure, or None without rows.
    """
    rows = [
        row
        for row in results.rows
        if row.provider == KPNOPS and row.clock == DEVICE and row.milliseconds is not None
    ]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for row in rows:
        axes.plot(
            operations_per_byte(row),
            row.gigabytes_per_second or 0.0,
            PASS_MARKS[row.pass_name],
            color=DTYPE_COLORS.get(row.case.dtype, "C3"),
            markersize=6,
            alpha=0.75,
            fillstyle="full" if _usual(row.case) else "none",
        )
    rate = results.header.copy_gigabytes_per_second
    if rate is not None:
        axes.axhline(rate, color="black", linewidth=1.2)
        axes.text(
            0.99,
            rate,
            f"device copy: {rate:.0f} GB/s",
            ha="right",
            va="bottom",
            transform=axes.get_yaxis_transform(),
            fontsize="small",
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("multiply-adds of the definition for each byte that must move")
    axes.set_ylabel("bytes that must move over the median, GB/s")
    for name, mark in PASS_MARKS.items():
        axes.plot([], [], mark, color="0.4", label=name)
    for name, color in DTYPE_COLORS.items():
        axes.plot([], [], "o", color=color, label=name)
    axes.plot([], [], "o", color="0.4", fillstyle="none", label="softmax or channels_last")
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(which="major", color="0.88")
    axes.set_title(textwrap.fill(hardware_line(results), 110), fontsize="small")
    return figure


def operations_per_byte(row: Row) -> float:
    """Return the multiply-adds of the definition over the bytes that must move.

    A forward makes one for each tap, channel and pixel; a backward three times as many: one each
    for the gradients of input, spatial and channel filter.
    """
    case = row.case
    products = case.taps * case.channels * case.pixels
    passes = {FORWARD: 1, BACKWARD: 3, FORWARD_BACKWARD: 4}[row.pass_name]
    return products * passes / minimal_bytes(case, row.pass_name)


def draw_kernel_sizes(results: Results) -> Figure | None:
    """Draw time against kernel size."""

    def hd(dtype: str) -> Callable[[AnyCase], bool]:
        return lambda case: (
            (case.batch, case.channels, case.height, case.dtype) == (1, 3, 1080, dtype)
            and case.channel_filter == "pixel"
        )

    def square(dtype: str) -> Callable[[AnyCase], bool]:
        return lambda case: (
            (case.batch, case.channels, case.height, case.dtype) == (1, 64, 512, dtype)
            and case.channel_filter == "pixel"
        )

    panels: list[Panel] = []
    for dtype in ("float32", "bfloat16"):
        panels.append((f"1×3×1080×1920, {dtype}", hd(dtype), lambda case: case.kernel_size))
        panels.append((f"1×64×512×512, {dtype}", square(dtype), lambda case: case.kernel_size))
    return _curves(results, panels, "kernel size K", log=False)


def draw_channels(results: Results) -> Figure | None:
    """Draw time against the number of channels."""
    panels: list[Panel] = [
        (
            f"512×512, K = {size}, float32",
            lambda case, size=size: (
                (case.batch, case.height, case.width, case.kernel_size) == (1, 512, 512, size)
                and (case.channel_filter, case.dtype) == ("pixel", "float32")
            ),
            lambda case: case.channels,
        )
        for size in (3, 5)
    ]
    return _curves(results, panels, "channels C")


def draw_resolutions(results: Results) -> Figure | None:
    """Draw time against the number of pixels."""
    panels: list[Panel] = [
        (
            f"3 channels, K = {size}, {dtype}",
            lambda case, size=size, dtype=dtype: (
                (case.batch, case.channels, case.kernel_size) == (1, 3, size)
                and (case.channel_filter, case.dtype) == ("pixel", dtype)
            ),
            lambda case: case.height * case.width,
        )
        for size in (3, 5)
        for dtype in ("float32", "bfloat16")
    ]
    return _curves(results, panels, "pixels H·W")


def _curves(results: Results, panels: list[Panel], label: str, log: bool = True) -> Figure | None:
    """Draw one row of panels for each pass; None where no panel has two numbers along its axis."""
    rows = [
        row
        for row in results.rows
        if row.clock == DEVICE
        and row.milliseconds is not None
        and isinstance(row.case, Case)
        and _usual(row.case)
    ]
    passes = (FORWARD, FORWARD_BACKWARD)
    shown = [panel for panel in panels if _has_curve(panel, rows, passes)]
    if not shown:
        return None
    figure, grid = plt.subplots(
        len(passes),
        len(shown),
        figsize=(4.2 * len(shown) + 1, 7),
        squeeze=False,
        layout="constrained",
    )
    for axes_row, pass_name in zip(grid, passes, strict=True):
        for axes, (title, covers, number) in zip(axes_row, shown, strict=True):
            chosen = [row for row in rows if row.pass_name == pass_name and covers(row.case)]
            _draw_curves(axes, chosen, number, log)
            axes.set_title(f"{pass_name}, {title}", fontsize="small")
            axes.set_xlabel(label, fontsize="small")
            axes.set_ylabel("ms", fontsize="small")
    handles = {
        text: handle
        for axes in grid.flat
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6)
    figure.suptitle(textwrap.fill(hardware_line(results), 60 * len(shown)), fontsize="small")
    return figure


def _has_curve(panel: Panel, rows: list[Row], passes: Iterable[str]) -> bool:
    _, covers, number = panel
    ours = [row for row in rows if row.provider == KPNOPS and row.pass_name in passes]
    return len({number(row.case) for row in ours if covers(row.case)}) > 1


def _draw_curves(axes: Axes, rows: list[Row], number: Callable[[AnyCase], int], log: bool) -> None:
    for provider, (line, color) in STYLES.items():
        points = sorted(
            (number(row.case), row.milliseconds) for row in rows if row.provider == provider
        )
        if points:
            places, times = zip(*points, strict=True)
            axes.plot(places, times, line, color=color, label=provider, markersize=5)
    axes.set_yscale("log")
    places = sorted({number(row.case) for row in rows})
    if log:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places], fontsize="x-small")
    axes.minorticks_off()
    axes.grid(color="0.88")
