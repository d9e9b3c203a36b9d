"""Reports: what they say of wins, losses, skips and failures."""

from dataclasses import replace

import pytest

from bench.cases import BACKWARD, FORWARD_BACKWARD, SOFTMAX, Case
from bench.environment import ROOT
from bench.report import (
    UNMEASURED,
    goal_lines,
    main,
    readme_table,
    terminal_report,
    with_tables,
    write_report,
)
from bench.report_markdown import full_report
from bench.results import COLD, DEVICE, GRAPH, HOST, GpuTests, save
from bench.text import hardware_line
from tests.bench.rows import DATE, GPU_HARDWARE, failed, measured, run, skipped

WIDE = Case(1, 64, 512, 512, 5, "image", "float32", "bfloat16")
ROWS = [
    measured(first_call_milliseconds=2500.0, fraction_of_copy=0.5, error=0.25),
    measured("eager_unfold", 100.0, peak_mebibytes=228.0),
    measured("compiled_slices", 2.0),
    measured("device_copy", 1.0),
    skipped("ddf_cuda", "runs on NVIDIA GPUs only"),
    failed("compiled_unfold", "result: an error is 7 times its rounding budget"),
    measured("kpnops", 0.025, WIDE, FORWARD_BACKWARD, saved_mebibytes=0.0),
    measured("eager_slices", 0.05, WIDE, FORWARD_BACKWARD),
]
RESULTS = run(ROWS)


def line_of(text, start):
    (line,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return line.split()


def test_terminal_report_shows_every_row():
    text = terminal_report(replace(RESULTS, rows=ROWS[:6]))
    assert line_of(text, "median  ")[1:3] == ["quartiles", "/"]
    kpnops = line_of(text, "kpnops")
    assert kpnops[1:9] == ["2.50", "ms", "2.25", "ms", "…", "3.00", "ms", "1.00"]
    # 136 bytes for each of 2^18 pixels in 2.5 ms; half of a copy.
    assert kpnops[9:12] == ["14.3", "50", "%"]
    assert kpnops[12:] == ["3.0", "–", "2500", "ms", "0.25"]
    assert "device_copy (y)" in text
    assert "ddf_cuda: skipped, runs on NVIDIA GPUs only" in text
    assert "compiled_unfold: failed, result: an error is 7 times" in text


def test_terminal_report_shows_saved_memory_where_there_is_a_backward():
    text = terminal_report(replace(RESULTS, rows=ROWS[6:]))
    assert line_of(text, "kpnops")[-4:] == ["3.0", "0.0", "–", "–"]


def test_group_in_which_nothing_ran_is_listed_with_its_reasons():
    text = terminal_report(replace(RESULTS, rows=ROWS[4:5]))
    assert "ddf_cuda: skipped, runs on NVIDIA GPUs only" in text
    assert "median  " not in text


def test_goals_are_reported_met_missed_and_not_measured():
    met, compiled, *others = goal_lines(RESULTS)
    assert met.startswith("goal met: CPU, forward: eager unfold ÷ kpnops: 40× (asked: ≥ 15×)")
    assert compiled.startswith("goal not measured: CPU, forward+backward: eager unfold")
    assert others[0].startswith("goal met: CPU, forward: best compiled alternative ÷ kpnops: 0.8×")
    slow = [measured(milliseconds=50.0), ROWS[1]]
    assert goal_lines(run(slow))[0].startswith("goal MISSED: CPU, forward: eager unfold")


def test_readme_shows_wins_and_losses():
    lines = readme_table(RESULTS).splitlines()
    assert lines[0] == hardware_line(RESULTS)
    assert lines[2].startswith("| input, kernel size, channel filter | pass | kpnops |")
    assert {line.count("|") for line in lines[2:]} == {11}
    # The copy is faster still, but no alternative: it does something else.
    assert lines[4] == (
        "| 1×3×512×512, K = 5, per pixel | forward | 2.50 ms | 50 % | compiled_slices 2.00 ms "
        "| 0.80× (slower) | 40.00× | 3.0 | 3.0 | 228.0 |"
    )
    assert lines[5] == (
        "| 1×64×512×512, K = 5, per image, float32 with bfloat16 filters | forward+backward "
        "| 25.0 µs | – | eager_slices 50.0 µs | 2.00× | – | 3.0 | 3.0 | – |"
    )


def test_readme_without_alternatives_and_without_kpnops():
    alone = readme_table(replace(RESULTS, rows=ROWS[:1]))
    assert "| 2.50 ms | 50 % | none ran | – | – | 3.0 | – | – |" in alone
    without = readme_table(replace(RESULTS, rows=ROWS[1:3]))
    assert "512" not in without


def test_readme_shows_the_main_rows_of_a_gpu():
    lines = readme_table(run(GPU_ROWS, GPU_HARDWARE)).splitlines()
    assert len(lines) == 5  # no softmax, no backward alone, no graphs, no first calls
    assert lines[4].startswith("| 1×3×1080×1920, K = 5, per pixel | forward | 100 µs | 90 % |")


HD = Case(1, 3, 1080, 1920, 5)
SOFT = replace(HD, normalize=SOFTMAX)
GPU_ROWS = [
    measured("kpnops", 0.1, HD, clock=DEVICE, fraction_of_copy=0.9),
    measured("compiled_slices", 0.05, HD, clock=DEVICE),
    measured("kpnops", 0.2, HD, BACKWARD, DEVICE, fraction_of_copy=0.5),
    measured("kpnops", 0.1, SOFT, clock=DEVICE),
    measured("softmax_kpnops", 0.19, SOFT, clock=DEVICE),
    measured("kpnops", 0.01, Case(32, 256, 7, 7, 3, "image"), clock=GRAPH),
    measured("kpnops", 0.05, Case(1, 3, 8, 8, 3), clock=HOST),
    measured("_tile_fwd_kernel", 1500.0, Case(1, 3, 8, 8, 3), clock=COLD),
    failed("eager_unfold", "the first call took over 60 s", HD),
    failed("eager_unfold", "the first call took over 60 s", SOFT),
]


def test_full_report_shows_goals_rows_losses_and_failures():
    tests = GpuTests("0123456789ab", DATE, True, 10, 1, 2, 60.0, ["tests/a.py::test_b"])
    text = full_report(run(GPU_ROWS, GPU_HARDWARE, tests=tests), ["a.png"])
    assert text.startswith("# Benchmarks: nvidia-h200\n")
    assert "GPU tests: 10 passed, 1 failed, 2 skipped, 2026-01-31" in text
    assert "`tests/a.py::test_b`" in text
    assert "A device copy moves 50 GB/s" in text
    assert (
        "| forward, C=3, K=5, per pixel or per image, float32: share of a copy | ≥ 85 % "
        "| met in all 1 | 90 % | 1×3×1080×1920, K = 5, per pixel |"
    ) in text
    assert (
        "| backward, C=3, K=3 and 5, per pixel, float32: share of a copy | ≥ 65 % "
        "| missed in 1 of 1 | 50 % |"
    ) in text
    assert "| forward, C=64, K=3, per pixel, float32: share of a copy | ≥ 85 % | not mea" in text
    assert "## forward, device events" in text
    assert "compiled_slices 50.0 µs | 0.50× (slower)" in text
    assert "| 1.90× |" in text
    assert "## forward, replays of CUDA graphs" in text
    assert "## Host time of a call" in text
    assert "first call, cold | _tile_fwd_kernel | 1500 ms |" in text
    assert "| eager_unfold | failed | the first call took over 60 s | 2 |" in text
    assert "![a.png](a.png)" in text


def test_full_report_says_that_tests_were_not_run_or_not_all():
    assert "The GPU tests were not run." in full_report(run(GPU_ROWS, GPU_HARDWARE), [])
    part = GpuTests("0123456789ab", DATE, False, 10, 0, 2, 60.0, [])
    text = full_report(run(GPU_ROWS, GPU_HARDWARE, tests=part), [])
    assert "10 passed, 0 failed, 2 skipped (not all of them ran)" in text


def test_full_report_marks_ratios_between_different_runs():
    assert "†" not in full_report(run(GPU_ROWS, GPU_HARDWARE), [])
    rows = [replace(GPU_ROWS[0], source="later"), *GPU_ROWS[1:]]
    text = full_report(run(rows, GPU_HARDWARE), [])
    assert "0.50× (slower) †" in text
    assert "†: the two were measured in different runs." in text


def test_report_is_written_beside_the_results(tmp_path):
    report, *pictures = write_report(RESULTS, tmp_path / "cpu-2core.json")
    assert report == tmp_path / "cpu-2core.md"
    assert [picture.name for picture in pictures] == ["cpu-2core.png"]
    assert "![cpu-2core.png](cpu-2core.png)" in report.read_text()


def test_readme_blocks_are_filled_from_the_committed_files(tmp_path):
    save(RESULTS, tmp_path / "cpu-2core.json")
    text = (
        "before\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nbetween\n"
        "<!-- bench:gpu -->\nold\n<!-- /bench:gpu -->\nafter\n"
    )
    filled = with_tables(text, tmp_path)
    assert filled == (
        f"before\n<!-- bench:cpu -->\n{readme_table(RESULTS)}\n<!-- /bench:cpu -->\nbetween\n"
        f"<!-- bench:gpu -->\n{UNMEASURED}\n<!-- /bench:gpu -->\nafter\n"
    )
    assert with_tables(filled, tmp_path) == filled
    save(run(GPU_ROWS, GPU_HARDWARE), tmp_path / "nvidia-h200.json")
    assert UNMEASURED not in with_tables(filled, tmp_path)
    assert with_tables("no blocks", tmp_path) == "no blocks"


def test_command_prints_the_readme_table(tmp_path, capsys):
    path = tmp_path / "cpu.json"
    save(RESULTS, path)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == readme_table(RESULTS) + "\n"


def test_command_names_a_missing_file(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "none.json does not exist" in captured.err


def test_command_needs_something_to_do(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "give a results file or --readme" in capsys.readouterr().err


def test_readme_shows_the_committed_results():
    """After a new measurement: `python -m bench.report --readme README.md`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text
