"""Goals of the fused head: the issue's table, row by row."""

from dataclasses import replace

import pytest

from bench.cases import FORWARD, FORWARD_BACKWARD
from bench.goal import outcomes_of
from bench.goals import CPU_GOALS, GPU_GOALS
from bench.head_cases import MODES, HeadCase
from bench.head_providers import PREDICT, STORED
from bench.report_head import HEAD_HEADINGS, STEP_HEADINGS, head_sections
from bench.results import DEVICE, MEBIBYTE, WALL
from bench.step_cases import STEP, StepCase
from bench.step_operations import STEP_FUSED, STEP_HEAD, STEP_NAIVE
from tests.bench.rows import failed, measured

LARGE = HeadCase(1, 3, 1080, 1920, 11)


def head_row(provider, milliseconds, case, pass_name=FORWARD, clock=DEVICE, **others):
    return measured(provider, milliseconds, case, pass_name, clock, **others)


def reached(goals, rows):
    return {
        goal.title: (outcome.reached, outcome.goal.asked, outcome.met)
        for goal in goals
        for outcome in outcomes_of(goal, rows)
    }


# channels, kernel size, mode: what our own unfused route and compiled PyTorch have to take
@pytest.mark.parametrize(
    ("channels", "kernel_size", "mode", "own", "compiled"),
    [
        (3, 11, "tf32", 1.0, 2.0),
        (3, 21, "bf16", 0.7, 1.3),
        (3, 21, "ieee", 0.4, None),
        (3, 7, "tf32", 0.7, None),
        (64, 11, "bf16", 0.5, None),
        (64, 5, "ieee", 0.4, None),
    ],
)
@pytest.mark.parametrize(("pass_name", "share"), [(FORWARD, 1.0), (FORWARD_BACKWARD, 0.7)])
def test_goals_are_those_of_the_table(channels, kernel_size, mode, own, compiled, pass_name, share):
    dtype, precision = MODES[mode]
    case = HeadCase(1, channels, 512, 512, kernel_size, 64, dtype, precision)
    for excess in (1e-6, -1e-6):
        rows = [
            head_row(PREDICT, 1.0, case, pass_name),
            head_row(STORED, share * own + excess, case, pass_name),
            head_row("compiled_conv_unfold", 9.0, case, pass_name),
            head_row("compiled_conv_slices", share * (compiled or 1.0) + excess, case, pass_name),
            head_row("device_copy", 0.01, case, pass_name),
        ]
        found = {t: got for t, got in reached(GPU_GOALS, rows).items() if "memory" not in t}
        asked = [share * own] + ([] if compiled is None else [share * compiled])
        assert [got[1] for got in found.values()] == pytest.approx(asked)
        assert [got[2] for got in found.values()] == [excess > 0] * len(asked)
        assert all(title.startswith(f"predict_filter, {pass_name}, ") for title in found)
        assert all(f", {mode}: " in title for title in found)


@pytest.mark.parametrize("pass_name", [FORWARD, FORWARD_BACKWARD])
def test_memory_beyond_results_and_a_number_for_each_pixel(pass_name):
    results = LARGE.result_bytes + (LARGE.argument_bytes if pass_name != FORWARD else 0)
    for megabytes, met in ((63.9, True), (64.1, False)):
        peak = results + 4 * 1080 * 1920 + megabytes * 1e6
        row = head_row(PREDICT, 1.0, LARGE, pass_name, peak_mebibytes=peak / MEBIBYTE)
        ((value, asked, is_met),) = reached(GPU_GOALS, [row]).values()
        assert (value, asked, is_met) == (pytest.approx(megabytes), 64, met)


def test_a_cpu_is_asked_for_no_worse_than_unfused():
    for pass_name in (FORWARD, FORWARD_BACKWARD):
        rows = [
            head_row(PREDICT, 2.0, LARGE, pass_name, WALL),
            head_row(STORED, 1.9, LARGE, pass_name, WALL),
        ]
        ((title, got),) = reached(CPU_GOALS, rows).items()
        assert title == f"CPU, predict_filter, {pass_name}: our own unfused ÷ fused"
        assert got == (0.95, 1.0, False)


def test_goals_of_filters_are_not_asked_of_the_fused_head():
    rows = [head_row(PREDICT, 1.0, LARGE), head_row("compiled_conv_unfold", 0.1, LARGE)]
    assert all(title.startswith("predict_filter") for title in reached(GPU_GOALS, rows))


def test_tables_show_wins_losses_and_what_is_missing():
    step = StepCase(8, 256, 256, 5, "bfloat16")
    rows = [
        head_row(PREDICT, 2.0, LARGE, fraction_of_copy=0.1, error=0.2),
        head_row(STORED, 1.0, LARGE, peak_mebibytes=968.0),
        replace(failed("compiled_conv_unfold", "out of memory", LARGE), clock=DEVICE),
        measured(STEP_FUSED, 30.0, step, STEP, DEVICE, peak_mebibytes=700.0),
        measured(STEP_NAIVE, 90.0, step, STEP, DEVICE, peak_mebibytes=2100.0),
        measured(STEP_HEAD, 60.0, step, STEP, DEVICE),
    ]
    text = "\n".join(head_sections(rows))
    assert "## predict_filter, forward\n" in text
    assert "## predict_filter, forward+backward" not in text
    assert (
        "| 1×3×1080×1920, K = 11, F = 64, ieee | 2.00 ms | 1.80 ms … 2.40 ms | 10 % "
        "| 0.50× (slower) | – | 3.0 | 968.0 | – |"
    ) in text
    assert (
        "| 8×3×256×256, K = 5, bfloat16 autocast | 30.0 ms | 90.0 ms | 60.0 ms | 3.00× | 2.00× "
        "| 700.0 | 2100.0 | 3.0 |"
    ) in text
    cells = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {len(HEAD_HEADINGS) + 1, len(STEP_HEADINGS) + 1}
    assert head_sections([]) == []
