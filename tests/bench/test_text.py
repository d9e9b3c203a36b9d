"""Numbers, cases and tables as text."""

from dataclasses import replace

import pytest

from bench.cases import CHANNELS_LAST, SOFTMAX
from bench.goal import Outcome
from bench.goals import CPU_GOALS, GPU_GOALS
from bench.text import (
    aligned,
    case_title,
    duration,
    duration_or_dash,
    goal_text,
    goal_value,
    hardware_line,
    markdown_table,
    number,
    share,
)
from tests.bench.rows import CASE, GPU_HARDWARE, measured, run


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (2.5e-3, "2.50 µs"),
        (0.999, "999 µs"),
        (1.0, "1.00 ms"),
        (31.4, "31.4 ms"),
        (2500.0, "2500 ms"),
    ],
)
def test_duration(milliseconds, expected):
    assert duration(milliseconds) == duration_or_dash(milliseconds) == expected


def test_what_was_not_measured_is_a_dash():
    assert duration_or_dash(None) == share(None) == number(None) == "–"
    assert share(0.854) == "85 %"


def test_case_title_names_what_is_not_usual():
    assert case_title(CASE) == "1×3×512×512, K = 5, per pixel"
    bfloat16 = replace(CASE, input_dtype="bfloat16", filter_dtype="bfloat16")
    assert case_title(bfloat16) == "1×3×512×512, K = 5, per pixel, bfloat16"
    mixed = replace(CASE, filter_dtype="bfloat16", layout=CHANNELS_LAST, normalize=SOFTMAX)
    assert case_title(mixed) == (
        "1×3×512×512, K = 5, per pixel, float32 with bfloat16 filters, channels_last, softmax"
    )


def test_hardware_line_warns_of_a_busy_cpu():
    quiet = hardware_line(run([measured(other_load=0.1)]))
    assert quiet == (
        "Some CPU, 2 cores, 1 threads; python 3.11.9, torch 2.13.0+cpu; commit abc1234; 2026-01-31"
    )
    busy = [measured(other_load=1.5)]
    assert hardware_line(run(busy)).endswith(
        "; BUSY MACHINE: other processes kept up to 1.5 cores busy"
    )
    assert "BUSY" not in hardware_line(run(busy, GPU_HARDWARE))


def test_hardware_line_of_a_gpu_names_its_driver():
    line = hardware_line(run([], GPU_HARDWARE, driver="580.1"))
    assert line.startswith("NVIDIA H200; python")
    assert "driver 580.1" in line


def test_goal_text_says_reached_and_asked():
    outcome = Outcome(CPU_GOALS[0], measured(), 31.71, True)
    assert goal_text(outcome) == "31.7× (asked: ≥ 15×), 1×3×512×512, K = 5, per pixel"
    assert goal_text(replace(outcome, quiet=False)).endswith("busy with other things")
    first_call = next(goal for goal in GPU_GOALS if goal.asked == 3000)
    text = goal_text(Outcome(first_call, measured(), 4321.0, False))
    assert text == "4,321 ms (asked: ≤ 3,000 ms), 1×3×512×512, K = 5, per pixel"
    assert goal_value(first_call, 12.345) == "12.3 ms"


def test_tables_are_aligned():
    assert aligned([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "ccc   d"]
    assert markdown_table(["a", "b"], [["c", "d"]]) == ["| a | b |", "| --- | ---: |", "| c | d |"]
