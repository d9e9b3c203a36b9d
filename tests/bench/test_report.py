"""Tables and plot: what they say of wins, losses, skips and failures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bench.cases import FORWARD, FORWARD_BACKWARD, Case, minimal_bytes
from bench.plot import plot
from bench.report import (
    case_title,
    duration,
    goal_lines,
    hardware_line,
    main,
    markdown_report,
    terminal_report,
)
from bench.results import FAILED, MEASURED, SKIPPED, GoalOutcome, Hardware, Results, Row, save

CASE = Case(1, 3, 512, 512, 5)
WIDE = Case(1, 64, 512, 512, 5, "image", "float32", "bfloat16")
MEBIBYTE = 2**20


def measured(provider, median, over_kpnops, over_best, case=CASE, pass_name=FORWARD, **others):
    return Row(
        case=case,
        pass_name=pass_name,
        provider=provider,
        yardstick=provider == "device_copy",
        status=MEASURED,
        reason="",
        minimal_bytes=minimal_bytes(case, pass_name),
        rounds=50,
        median=median,
        quartiles=(0.9 * median, 1.2 * median),
        first_call=2.5,
        saved_bytes=0 if pass_name == FORWARD_BACKWARD else None,
        bytes_per_second=minimal_bytes(case, pass_name) / median,
        time_over_kpnops=over_kpnops,
        time_over_best_alternative=over_best,
        **{"error": 0.25, "fraction_of_copy": 0.5, "peak_bytes": 3 * MEBIBYTE} | others,
    )


def unmeasured(provider, status, reason, case=CASE):
    return Row(case, FORWARD, provider, False, status, reason, minimal_bytes(case, FORWARD))


ROWS = [
    measured("kpnops", 0.0025, 1.0, 1.25),
    measured("eager_unfold", 0.1, 40.0, 50.0, peak_bytes=228 * MEBIBYTE),
    measured("compiled_slices", 0.002, 0.8, 1.0),
    measured("device_copy", 0.001, 0.4, 0.5, error=None),
    unmeasured("ddf_cuda", SKIPPED, "runs on NVIDIA GPUs only"),
    unmeasured("compiled_unfold", FAILED, "result: an error is 7 times its rounding budget"),
    measured("kpnops", 2.5e-5, 1.0, 0.5, WIDE, FORWARD_BACKWARD),
    measured("eager_slices", 5e-5, 2.0, 1.0, WIDE, FORWARD_BACKWARD),
]
RESULTS = Results(
    schema=1,
    date="2026-01-31T12:00:00+00:00",
    hardware=Hardware("cpu", "Some CPU", "Some CPU", 2, 1, 2**34),
    versions={"python": "3.11.9", "system": "Linux", "torch": "2.13.0+cpu"},
    rows=ROWS,
    goals=[
        GoalOutcome("this forward", 10.0, 40.0, True, True),
        GoalOutcome("that forward", 3.0, 2.5, False, True),
        GoalOutcome("other forward", 3.0, 2.0, False, False),
    ],
)


def line_of(text, start):
    (line,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return line.split()


def test_terminal_report_shows_every_row():
    text = terminal_report(replace(RESULTS, rows=ROWS[:6]))
    assert line_of(text, "median  ")[1:3] == ["quartiles", "/"]
    kpnops = line_of(text, "kpnops")
    assert kpnops[1:9] == ["2.50", "ms", "2.25", "ms", "…", "3.00", "ms", "1.00"]
    # 1.25 of the best alternative; 136 bytes for each of 2^18 pixels in 2.5 ms; half of a copy.
    assert kpnops[9:13] == ["1.25", "14.3", "50", "%"]
    assert kpnops[13:] == ["3.0", "–", "2500", "ms", "0.25"]
    assert "device_copy (y)" in text
    assert "ddf_cuda: skipped, runs on NVIDIA GPUs only" in text
    assert "compiled_unfold: failed, result: an error is 7 times" in text
    assert text.count(f"{CASE.name} {FORWARD}") == 1


def test_terminal_report_shows_saved_memory_where_there_is_a_backward():
    text = terminal_report(replace(RESULTS, rows=ROWS[6:]))
    assert line_of(text, "kpnops")[-4:] == ["0.0", "2500", "ms", "0.25"]


def test_group_in_which_nothing_ran_is_listed_with_its_reasons():
    text = terminal_report(replace(RESULTS, rows=ROWS[4:5]))
    assert "ddf_cuda: skipped, runs on NVIDIA GPUs only" in text
    assert "median  " not in text


def test_goals_are_reported_met_and_missed():
    assert goal_lines(RESULTS) == [
        "goal met: this forward: 40.0x faster than eager unfold (asked: 10x)",
        "goal MISSED: that forward: 2.5x faster than eager unfold (asked: 3x)",
        "goal MISSED: other forward: 2.0x faster than eager unfold (asked: 3x); the machine was"
        " busy with other things",
    ]
    assert "goal MISSED: that forward" in terminal_report(RESULTS)


def test_hardware_line_warns_of_a_busy_machine():
    quiet = hardware_line(RESULTS)
    assert quiet == "Some CPU, 2 cores, 1 threads; python 3.11.9, torch 2.13.0+cpu; 2026-01-31"
    busy = replace(RESULTS, rows=[replace(ROWS[0], other_load=1.5)])
    assert hardware_line(busy).endswith("; BUSY MACHINE: other processes kept up to 1.5 cores busy")


def test_markdown_shows_wins_and_losses():
    lines = markdown_report(RESULTS).splitlines()
    assert lines[0] == hardware_line(RESULTS)
    assert lines[2].startswith("| input, kernel size, channel filter | pass | kpnops |")
    assert {line.count("|") for line in lines[2:]} == {10}
    # The copy is faster still, but no alternative: it does something else.
    assert lines[4] == (
        "| 1×3×512×512, K = 5, per pixel | forward | 2.50 ms | compiled_slices 2.00 ms "
        "| 0.80× (slower) | 40.00× | 3.0 | 3.0 | 228.0 |"
    )
    assert lines[5] == (
        "| 1×64×512×512, K = 5, per image, float32 with bfloat16 filters | forward+backward "
        "| 25.0 µs | eager_slices 50.0 µs | 2.00× | – | 3.0 | 3.0 | – |"
    )


def test_markdown_without_alternatives_and_without_kpnops():
    alone = markdown_report(replace(RESULTS, rows=ROWS[:1]))
    assert "| 2.50 ms | none ran | – | – | 3.0 | – | – |" in alone
    without = markdown_report(replace(RESULTS, rows=ROWS[1:3]))
    assert "512" not in without


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2.5e-6, "2.50 µs"),
        (9.99e-4, "999 µs"),
        (1e-3, "1.00 ms"),
        (0.0314, "31.4 ms"),
        (2.5, "2500 ms"),
    ],
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


def test_case_title_names_a_type_that_is_not_float32():
    assert case_title(CASE) == "1×3×512×512, K = 5, per pixel"
    case = replace(CASE, input_dtype="bfloat16", filter_dtype="bfloat16")
    assert case_title(case) == "1×3×512×512, K = 5, per pixel, bfloat16"


def test_command_prints_the_readme_table(tmp_path, capsys):
    path = tmp_path / "cpu.json"
    save(RESULTS, path)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == markdown_report(RESULTS) + "\n"


def test_command_names_a_missing_file(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "none.json does not exist" in captured.err


@pytest.mark.parametrize("rows", [ROWS, ROWS[:6], ROWS[:1]], ids=["both", "forward", "one row"])
def test_plot_is_a_picture(rows, tmp_path):
    path = tmp_path / "cpu.png"
    plot(replace(RESULTS, rows=rows), path)
    assert [file.name for file in tmp_path.iterdir()] == ["cpu.png"]
    with Image.open(path) as image:
        image.load()
        assert image.width > 500
        # Something is drawn beside the white ground.
        assert len(np.unique(np.asarray(image.convert("L")))) > 8


def test_plot_grows_with_the_number_of_cases(tmp_path):
    heights = []
    for count in (1, 12):
        rows = [
            measured("kpnops", 0.002, 1.0, 0.5, replace(CASE, batch=batch + 1))
            for batch in range(count)
        ]
        plot(replace(RESULTS, rows=rows), tmp_path / "cpu.png")
        with Image.open(tmp_path / "cpu.png") as image:
            heights.append(image.height)
    assert heights[1] > 2 * heights[0]


def test_hardware_of_a_gpu_is_its_name():
    gpu = replace(RESULTS, hardware=Hardware("cuda", "Some GPU", "Some CPU", 16, 8, 2**36))
    assert hardware_line(gpu).startswith("Some GPU; python")
    assert torch.device(gpu.hardware.device).type == "cuda"
