"""`pytest bench/` itself: collection, rows of pytest-benchmark, files, exit status."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cases import FORWARD, Case
from bench.head_cases import HeadCase
from bench.results import Results, load, make_header, save
from bench.session import Measurements, check_mergeable, merged_results
from tests.bench.rows import measured, run

ROOT = Path(__file__).resolve().parents[2]
CASE = Case(1, 3, 16, 16, 3)


def test_group_is_measured_once_and_only_with_those_selected():
    measurements = Measurements(torch.device("cpu"))
    selected = {"kpnops", "eager_slices"}
    first = measurements.of(CASE, FORWARD, "kpnops", selected, timed=True)
    again = measurements.of(CASE, FORWARD, "kpnops", selected, timed=True)
    assert again is first
    measurements.of(CASE, FORWARD, "eager_slices", selected, timed=True)
    assert [row.provider for row in measurements.rows] == ["kpnops", "eager_slices"]
    assert measurements.results().rows == measurements.rows


def test_untimed_rows_are_not_results():
    measurements = Measurements(torch.device("cpu"))
    measurements.of(CASE, FORWARD, "kpnops", {"kpnops"}, timed=False)
    assert measurements.rows == []


def test_rows_are_merged_into_a_file_of_the_same_machine_and_versions(tmp_path):
    path, device = tmp_path / "cpu.json", torch.device("cpu")
    new = Results(make_header(device), [measured("kpnops", 3.0), measured("predict_filter")])
    check_mergeable(path, device)
    assert merged_results(new, path) == new
    save(replace(new, rows=[measured("kpnops", 2.0), measured("eager_unfold")]), path)
    check_mergeable(path, device)
    merged = merged_results(new, path)
    assert {row.provider: row.milliseconds for row in merged.rows} == {
        "kpnops": 3.0,
        "eager_unfold": 2.5,
        "predict_filter": 2.5,
    }
    save(run([]), path)
    with pytest.raises(ValueError, match=r"--merge: .*was measured with the hardware"):
        check_mergeable(path, device)
    header = replace(new.header, versions={"torch": "1"})
    save(Results(header, []), path)
    with pytest.raises(ValueError, match=r"with the versions \{'torch': '1'\}"):
        check_mergeable(path, device)


def test_groups_of_every_kind_are_measured_by_their_own_providers():
    measurements = Measurements(torch.device("cpu"))
    case = HeadCase(1, 3, 8, 8, 3, 4)
    selected = {"predict_filter", "conv_kpnops", "kpnops"}
    measurements.of(case, FORWARD, "predict_filter", selected, timed=True)
    assert [row.provider for row in measurements.rows] == ["predict_filter", "conv_kpnops"]


def test_a_run_of_two_providers(tmp_path):
    """One real run: pytest-benchmark's rows and the project's own file tell the same times."""
    name = f"local-test-{os.getpid()}"
    files = [ROOT / "bench" / "results" / f"{name}.{suffix}" for suffix in ("json", "png")]
    expression = "64x128x128 and forward and not backward and (kpnops or device_copy)"
    command = [
        *(sys.executable, "-m", "pytest", "bench/", "-k", expression, "--device=cpu"),
        *(f"--results={name}.json", f"--benchmark-json={tmp_path / 'rows.json'}"),
        *("-p", "no:cacheprovider"),
    ]
    try:
        # One thread: on a busy machine every parallel loop waits for its slowest.
        # Not a worker of pytest-xdist, though this test may run in one: benchmarks are off there.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
        environment = inherited | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )
        assert run.returncode == 0, run.stdout + run.stderr
        results = load(files[0])
        assert files[1].stat().st_size > 0
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    assert {row.provider: row.case for row in results.rows} == {
        "kpnops": Case(1, 64, 128, 128, 5),
        "device_copy": Case(1, 64, 128, 128, 5),
    }
    ours = {row.provider: row for row in results.rows}
    theirs = json.loads((tmp_path / "rows.json").read_text())["benchmarks"]
    assert {row["group"] for row in theirs} == {f"{Case(1, 64, 128, 128, 5).name} {FORWARD}"}
    for row in theirs:
        mine = ours[row["params"]["provider"]]
        assert row["stats"]["median"] == pytest.approx(mine.milliseconds / 1e3)
        assert row["stats"]["rounds"] == mine.rounds
        assert row["extra_info"]["fraction_of_copy"] == mine.fraction_of_copy
        assert row["extra_info"]["minimal_bytes"] == mine.minimal_bytes
    assert f"wrote {files[0]}" in run.stdout
    assert "device_copy (y)" in run.stdout


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--results=folder/cpu", "--results expects a file name without folders"),
        pytest.param(
            "--device=cuda",
            "--device cuda: torch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_unusable_options_are_refused(option, named, capfd):
    status = pytest.main(["bench/", "-p", "no:cacheprovider", option])
    assert status == pytest.ExitCode.USAGE_ERROR
    assert named in capfd.readouterr().err
