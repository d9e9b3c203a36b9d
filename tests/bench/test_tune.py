"""The sweep of launch parameters: what is tried, what is chosen, what is written."""

import json
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there are no launches to sweep")

from bench import tune
from bench.cases import Case
from bench.tune import Choice, Target, changed, choose, enter, main, read_table, sweep_all
from bench.tune_problems import (
    HIGHEST,
    KERNELS,
    SHAPES,
    WIDEST,
    Problem,
    bounds,
    meta_tensors,
    planned,
    problems,
    shapes,
)
from kpnops._decoupled_filter.launch import TileLaunch
from kpnops._decoupled_filter.launch_table import Entry, check_table, entries_for

HEURISTIC = TileLaunch(block_h=4, block_w=128, num_warps=4, rows=2, pixels=2)
TARGET = Target("NVIDIA H200", "sm_90", "580")
PROBLEM = Problem("tile_forward", Case(1, 3, 64, 256, 5))


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.name)
def test_every_problem_launches_its_kernel_and_looks_it_up(problem):
    base, recorder = planned(problem, meta_tensors(problem.case))
    assert recorder.key.startswith(f"{problem.kernel} {problem.case.kernel_size}x")
    assert base.num_warps == recorder.heuristic.num_warps
    candidates = shapes(recorder.heuristic, problem.kernel)
    assert candidates
    assert recorder.heuristic not in candidates
    # A forced candidate is what is launched.
    forced = candidates[-1]
    launch, _ = planned(problem, meta_tensors(problem.case), forced)
    bound = getattr(forced, "max_registers", base.max_registers)  # those of bands follow the call
    assert (launch.num_warps, launch.max_registers) == (forced.num_warps, bound)
    assert launch.constants != base.constants or launch.num_warps != base.num_warps


def test_problems_are_of_different_classes():
    keys = [planned(problem, meta_tensors(problem.case))[1].key for problem in problems()]
    assert len(set(keys)) == len(keys)
    assert {problem.kernel for problem in problems()} == set(KERNELS) == set(SHAPES)


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.name)
def test_candidates_stay_within_what_offsets_allow(problem):
    _, recorder = planned(problem, meta_tensors(problem.case))
    for config in shapes(recorder.heuristic, problem.kernel):
        assert getattr(config, "block_w", 0) <= WIDEST
        if problem.kernel != "tile_channel_image":  # whose rows are walked
            assert getattr(config, "block_h", 0) <= HIGHEST


def test_threads_fill_their_tile():
    for config in shapes(HEURISTIC, "tile_forward"):
        assert config.block_h * config.block_w == 32 * config.num_warps * config.rows * 2
        # How many pixels are loaded at once depends on the tensors: not a parameter to choose.
        assert config.pixels == HEURISTIC.pixels


def test_bounds_differ_from_the_present_one():
    candidates = bounds(HEURISTIC)
    assert HEURISTIC not in candidates
    assert {config.max_registers for config in candidates} == {96, 128, 168, 255}


class Clock:
    """Times candidates by a formula; counts how often."""

    def __init__(self, formula):
        self.formula = formula
        self.calls = []

    def __call__(self, candidates):
        self.calls.append(candidates)
        return [self.formula(config) for config in candidates]


def all_fit(candidates):
    return candidates


def test_the_fastest_that_fits_is_chosen_then_its_bound():
    def formula(config):
        faster = 0.5 if config.rows == 8 else 0.8 if config.rows == 4 else 1.0
        return faster * (0.9 if config.max_registers == 128 else 1.0)

    def few_rows(candidates):
        return [config for config in candidates if config.rows <= 4]

    clock = Clock(formula)
    choice = choose(HEURISTIC, "tile_forward", few_rows, clock)
    assert (choice.config.rows, choice.config.max_registers) == (4, 128)
    assert choice.milliseconds == pytest.approx(0.72)
    assert choice.heuristic_milliseconds == 1.0
    assert all(candidates[0] == HEURISTIC for candidates in clock.calls)


@pytest.mark.parametrize(("milliseconds", "kept"), [(0.99, True), (0.97, False)])
def test_a_small_win_keeps_the_heuristic(milliseconds, kept):
    other = shapes(HEURISTIC, "tile_forward")[0]
    clock = Clock(lambda config: milliseconds if config == other else 1.0)
    choice = choose(HEURISTIC, "tile_forward", all_fit, clock)
    assert (choice.config is None) is kept
    assert choice.heuristic_milliseconds == 1.0


def test_the_heuristic_is_kept_where_nothing_else_fits():
    choice = choose(HEURISTIC, "tile_forward", lambda candidates: [], Clock(lambda config: 2.0))
    assert choice == Choice(None, 2.0, 2.0)


def test_entry_says_what_differs_and_where_it_comes_from():
    table = {"schema": 1, "devices": {}}
    best = replace(HEURISTIC, rows=4, max_registers=128)
    assert changed(HEURISTIC, best) == {"rows": 4, "max_registers": 128}
    enter(table, TARGET, "key", HEURISTIC, Choice(best, 0.8, 1.0))
    enter(table, TARGET, "other", HEURISTIC, Choice(None, 1.0, 1.0))
    check_table(table)
    device = table["devices"]["NVIDIA H200"]
    assert device["architecture"] == "sm_90"
    assert device["driver"] == "580"
    assert device["versions"]["torch"] == torch.__version__
    assert device["commit"]
    assert device["date"].endswith("+00:00")
    found = entries_for(table, "NVIDIA H200", "sm_90")
    assert found == {"key": Entry(asdict(HEURISTIC), {"rows": 4, "max_registers": 128})}


def test_sweep_is_written_after_each_problem_and_resumed(tmp_path):
    path = tmp_path / "table.json"
    others = [Problem("fused", PROBLEM.case), Problem("tile_forward", Case(1, 3, 64, 256, 3))]
    swept = []
    seconds = iter([100.0, 100.0, 1.0])

    def sweep(problem):
        swept.append(problem)
        return Choice(None, 1.0, 1.0)

    chosen = [PROBLEM, *others]
    assert sweep_all(chosen, path, TARGET, lambda: next(seconds), sweep) == 1
    assert swept == chosen[:2]
    assert len(read_table(path)["devices"]["NVIDIA H200"]["entries"]) == 2
    assert sweep_all(chosen, path, TARGET, lambda: 100.0, sweep) == 0
    assert swept == chosen
    assert sweep_all(chosen[:1], path, TARGET, lambda: 100.0, sweep, again=True) == 0
    assert swept == [*chosen, PROBLEM]
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_a_wrong_table_is_not_written_over(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"schema": 7}))
    with pytest.raises(ValueError, match="launch table"):
        read_table(path)


def test_dry_run_lists_problems_without_a_gpu(capsys):
    assert main(["--dry-run", "--only", "fused 1x3x1080x1920-K5"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("fused 5x5 pixel plain zeros C3 32/32/32:32 rows W>128 A16: ")
    assert "problems" in last


def test_without_a_gpu_there_is_no_sweep(monkeypatch, capsys):
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_sweep_on_a_gpu(tmp_path):
    from bench.tune_device import Sweeper

    device = torch.device("cuda")
    path = tmp_path / "table.json"
    with Sweeper(device, 0.005, 4) as sweeper:
        few = Problem("tile_filters", Case(1, 16, 64, 256, 3))  # candidates
        assert sweep_all([few], path, TARGET, lambda: 100.0, sweeper.sweep) == 0
    ((_, entry),) = read_table(path)["devices"]["NVIDIA H200"]["entries"].items()
    assert 0 < entry["milliseconds"] <= entry["heuristic_milliseconds"]
