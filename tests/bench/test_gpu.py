"""`python -m bench.gpu`: tried on the CPU with tiny shapes, resumed, and its tests' outcomes."""

import json
from dataclasses import replace

import pytest

from bench import gpu
from bench.gpu import main, options_of
from bench.gpu_tests import run_tests, summary
from bench.results import FAILED, HOST, WALL, GpuTests, load, save
from bench.session import open_results
from tests.bench.rows import DATE, GPU_HARDWARE, measured, run

TINY = ["--device", "cpu", "--tiny", "--seconds", "0.001", "--no-report"]


def test_a_run_on_the_cpu_is_resumed(tmp_path, capfd):
    """Real processes: a group timed in turns and the host time of a call, then nothing is left."""
    path = tmp_path / "local.json"
    arguments = [*TINY, "--results", str(path), "--providers", "kpnops,empty_custom_op"]
    arguments += ["--only", "K3-pixel-float32 forward "]
    assert main(arguments) == 0
    rows = load(path).rows
    assert {row.clock for row in rows} == {WALL, HOST}
    assert {row.status for row in rows} == {"measured"}
    assert {row.provider for row in rows} == {"kpnops", "empty_custom_op"}
    capfd.readouterr()
    assert main(arguments) == 0
    assert "\n0 of" in "\n" + capfd.readouterr().err
    assert load(path).rows == rows


def test_a_machine_without_a_gpu_is_told(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--results", str(tmp_path / "none.json")]) == 2
    assert capfd.readouterr().err.startswith("cuda: ")
    assert not (tmp_path / "none.json").exists()


def test_the_list_names_tasks(capsys):
    assert main(["--list", "--only", "K11-pixel-bfloat16 forward (device)"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "channels: 1x64x512x512-K11-pixel-bfloat16 forward (device)" in lines


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        options_of(["--part", "everything"])
    assert "goals" in capsys.readouterr().err


def test_results_of_other_versions_are_not_mixed(tmp_path, capfd):
    path = tmp_path / "gpu.json"
    old = run([measured()], GPU_HARDWARE)
    save(old, path)
    assert open_results(path, replace(old.header, date="2027-01-01")).rows == old.rows
    for change in ({"versions": {"torch": "3"}}, {"driver": "600"}):
        assert open_results(path, replace(old.header, **change)).rows == []
    assert "starting anew" in capfd.readouterr().err
    assert open_results(tmp_path / "none.json", old.header).rows == []
    path.write_text("{}")
    assert open_results(path, old.header).rows == []


def test_the_tests_summary_is_kept(tmp_path):
    path = tmp_path / "gpu.json"
    tests = GpuTests("0123456789ab", DATE, True, 1, 0, 0, 1.0, [])
    save(run([], GPU_HARDWARE, tests=tests), path)
    assert open_results(path, run([], GPU_HARDWARE).header).header.tests == tests


MODULE = """
import pytest

def test_good():
    pass

def test_bad():
    assert {bad}

def test_left_out():
    pytest.skip("for a reason")
"""


def test_outcomes_are_collected_and_only_what_failed_runs_again(tmp_path):
    module = tmp_path / "test_some.py"
    state = tmp_path / "state.jsonl"
    extra = [str(module), "-n", "0", "--rootdir", str(tmp_path)]
    module.write_text(MODULE.format(bad=False))
    tests = run_tests(state, 120, extra=extra)
    assert (tests.complete, tests.passed, tests.failed, tests.skipped) == (True, 1, 1, 1)
    assert [name.endswith("test_bad") for name in tests.failures] == [True]
    module.write_text(MODULE.format(bad=True))
    tests = run_tests(state, 120, extra=extra)
    assert (tests.complete, tests.passed, tests.failed, tests.skipped) == (True, 2, 0, 1)
    lines = [json.loads(line) for line in state.read_text().splitlines()]
    assert len(lines) == 4  # the sources, and one outcome for each test


def test_tests_that_the_time_ends_are_not_complete(tmp_path):
    module = tmp_path / "test_some.py"
    module.write_text("import time\ndef test_long():\n    time.sleep(600)\n")
    extra = [str(module), "-n", "0", "--rootdir", str(tmp_path)]
    tests = run_tests(tmp_path / "state.jsonl", 0.5, extra=extra)
    assert not tests.complete
    assert tests.passed == 0


def test_the_last_outcome_of_a_test_counts():
    tests = summary([["a", "failed", 1.0], ["b", FAILED, 1.0], ["a", "passed", 1.0]], True, 9.87)
    assert (tests.passed, tests.failed, tests.failures) == (1, 1, ["b"])


def test_defaults_keep_a_part_below_ten_minutes():
    options = options_of([])
    assert options.minutes < 10
    assert options.device == "cuda"
    assert gpu.chosen_tasks(options)
