"""The schema: what is written is read back, and nothing else is accepted."""

import json
from dataclasses import replace

import pytest
import torch

from bench.cases import FORWARD, FORWARD_BACKWARD, Case, minimal_bytes
from bench.results import (
    FAILED,
    GOALS,
    MEASURED,
    QUIET,
    SCHEMA,
    SKIPPED,
    Row,
    collect,
    goal_outcome,
    load,
    save,
)

CPU = torch.device("cpu")
CASE = Case(1, 3, 512, 512, 5)


def row(provider, median=None, **others):
    """A row of the case at K=5, forward, timed or skipped."""
    values = {
        "case": CASE,
        "pass_name": FORWARD,
        "provider": provider,
        "yardstick": False,
        "status": SKIPPED if median is None else MEASURED,
        "reason": "not here" if median is None else "",
        "minimal_bytes": minimal_bytes(CASE, FORWARD),
    }
    if median is not None:
        values |= {"rounds": 9, "median": median, "quartiles": (0.9 * median, 1.1 * median)}
    return Row(**(values | others))


ROWS = [
    row("kpnops", 0.003, peak_bytes=3145728, error=0.2, first_call=0.01, other_load=0.0),
    row("eager_unfold", 0.12, saved_bytes=0, time_over_kpnops=40.0),
    row("ddf_cuda"),
    row("wrong", status=FAILED, reason="result: an error is 7 times its rounding budget"),
]


def test_results_are_read_back_as_they_were_written(tmp_path):
    results = collect(ROWS, CPU)
    path = tmp_path / "new folder" / "cpu.json"
    save(results, path)
    assert load(path) == results
    assert [file.name for file in path.parent.iterdir()] == ["cpu.json"]


def test_results_say_where_they_come_from():
    results = collect(ROWS, CPU)
    assert results.schema == SCHEMA
    assert results.date.endswith("+00:00")
    assert results.hardware.device == "cpu"
    assert results.hardware.name == results.hardware.cpu != ""
    assert results.hardware.cores >= 1
    assert results.hardware.threads == torch.get_num_threads()
    assert results.hardware.memory_bytes > 2**28
    assert results.versions["torch"] == torch.__version__
    assert {"python", "system", "kpnops", "numpy"} <= results.versions.keys()


def test_layout_of_the_file_is_fixed(tmp_path):
    """A new or renamed field needs a new schema number: committed files stay readable."""
    path = tmp_path / "cpu.json"
    save(collect(ROWS, CPU), path)
    data = json.loads(path.read_text())
    assert SCHEMA == 1
    assert list(data) == ["schema", "date", "hardware", "versions", "rows", "goals"]
    assert list(data["hardware"]) == ["device", "name", "cpu", "cores", "threads", "memory_bytes"]
    assert list(data["rows"][0]) == [
        "case",
        "pass_name",
        "provider",
        "yardstick",
        "status",
        "reason",
        "minimal_bytes",
        "rounds",
        "median",
        "quartiles",
        "first_call",
        "peak_bytes",
        "saved_bytes",
        "error",
        "bytes_per_second",
        "fraction_of_copy",
        "time_over_kpnops",
        "time_over_best_alternative",
        "other_load",
    ]
    assert data["rows"][0]["case"] == {
        "batch": 1,
        "channels": 3,
        "height": 512,
        "width": 512,
        "kernel_size": 5,
        "channel_filter": "pixel",
        "input_dtype": "float32",
        "filter_dtype": "float32",
    }
    assert list(data["goals"][0]) == ["name", "asked", "reached", "met", "quiet"]


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda data: data.update(schema=99), "expected schema 1, got 99"),
        (lambda data: data.pop("rows"), "expected the fields"),
        (lambda data: data.update(extra=1), "expected the fields"),
        (lambda data: data["rows"][1].pop("median"), r"\.rows\[1\]: expected the fields"),
        (
            lambda data: data["rows"][0].update(median="3 ms"),
            r"\.rows\[0\]\.median: expected float, got '3 ms'",
        ),
        (
            lambda data: data["rows"][0].update(rounds=True),
            r"\.rows\[0\]\.rounds: expected int, got True",
        ),
        (
            lambda data: data["rows"][0].update(quartiles=[1.0]),
            r"\.rows\[0\]\.quartiles: expected tuple",
        ),
        (
            lambda data: data["rows"][0]["case"].update(batch=None),
            r"\.rows\[0\]\.case\.batch: expected int, got None",
        ),
        (lambda data: data.update(rows={}), r"\.rows: expected list"),
        (lambda data: data.update(versions=[]), r"\.versions: expected an object"),
        (lambda data: data["versions"].update(torch=2), r"\.versions\.torch: expected str"),
    ],
)
def test_other_layouts_are_refused_and_named(harm, named, tmp_path):
    path = tmp_path / "cpu.json"
    save(collect(ROWS, CPU), path)
    data = json.loads(path.read_text())
    harm(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=named):
        load(path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        load(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema": 1,')
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        load(broken)
    broken.write_text("[]")
    with pytest.raises(ValueError, match="expected schema 1, got None"):
        load(broken)


def test_goals_are_those_asked_for():
    assert {goal.name: goal.asked for goal in GOALS} == {
        "1x3x512x512-K5-pixel-float32 forward": 10,
        "1x3x512x512-K5-pixel-float32 forward+backward": 3,
        "1x32x256x256-K3-pixel-float32 forward": 10,
        "1x32x256x256-K3-pixel-float32 forward+backward": 3,
    }


@pytest.mark.parametrize(("unfold", "met"), [(0.03, True), (0.0299, False)])
def test_goal_is_a_ratio_of_medians(unfold, met):
    outcome = goal_outcome(GOALS[0], [row("kpnops", 0.003), row("eager_unfold", unfold)])
    assert outcome is not None
    assert outcome.met is met
    assert outcome.reached == unfold / 0.003
    assert outcome.quiet


def test_goal_is_judged_by_its_own_rows_alone():
    rows = [row("kpnops", 0.003), row("eager_unfold", 0.3, pass_name=FORWARD_BACKWARD)]
    assert goal_outcome(GOALS[0], rows) is None
    assert goal_outcome(GOALS[0], [row("kpnops", 0.003), row("eager_unfold")]) is None
    small = row("eager_unfold", 0.3, case=replace(CASE, kernel_size=3))
    assert goal_outcome(GOALS[0], [row("kpnops", 0.003), small]) is None


def test_goal_knows_that_others_were_busy():
    rows = [row("kpnops", 0.003, other_load=2 * QUIET), row("eager_unfold", 0.3)]
    outcome = goal_outcome(GOALS[0], rows)
    assert outcome is not None
    assert not outcome.quiet
