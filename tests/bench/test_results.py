"""The schema: what is written is read back, anything else is refused and named."""

import json
from dataclasses import replace

import pytest
import torch

from bench.cases import BACKWARD, FORWARD, FORWARD_BACKWARD, SOFTMAX, Case
from bench.results import (
    DEVICE,
    MEBIBYTE,
    SCHEMA,
    WALL,
    GpuTests,
    Results,
    groups_of,
    load,
    make_header,
    merge,
    row_from_json,
    row_to_json,
    save,
    stamped,
    with_durations,
)
from tests.bench.rows import CASE, DATE, GPU_HARDWARE, failed, measured, run, skipped

CPU = torch.device("cpu")
MIXED = Case(2, 64, 96, 80, 3, "image", "float32", "bfloat16", "channels_last", SOFTMAX)
ROWS = [
    measured(error=0.2, first_call_milliseconds=10.0, other_load=0.0),
    measured("eager_unfold", 120.0, saved_mebibytes=0.0),
    measured("kpnops", 0.5, MIXED, BACKWARD, DEVICE, fraction_of_copy=0.8),
    skipped("ddf_cuda"),
    failed("wrong", "result: an error is 7 times its rounding budget"),
]
TESTS = GpuTests("0123456789ab", DATE, True, 100, 1, 2, 60.5, ["tests/a.py::test_b"])


def test_results_are_read_back_as_they_were_written(tmp_path):
    results = run(ROWS, GPU_HARDWARE, tests=TESTS, driver="580.1")
    path = tmp_path / "new folder" / "gpu.json"
    save(results, path)
    assert load(path) == results
    assert [file.name for file in path.parent.iterdir()] == ["gpu.json"]


def test_a_row_is_a_line(tmp_path):
    path = tmp_path / "cpu.json"
    save(run(ROWS), path)
    lines = [line for line in path.read_text().splitlines() if '"provider"' in line]
    assert len(lines) == len(ROWS)


def test_header_says_where_rows_come_from():
    header = make_header(CPU, 12.5)
    assert header.date.endswith("+00:00")
    assert header.hardware.kind == "cpu"
    assert header.hardware.name == header.hardware.cpu != ""
    assert header.hardware.cores >= 1
    assert header.hardware.threads == torch.get_num_threads()
    assert header.hardware.memory_bytes > 2**28
    assert header.device == f"cpu-{header.hardware.cores}core"
    assert header.versions["torch"] == torch.__version__
    assert {"python", "system", "kpnops", "numpy"} <= header.versions.keys()
    assert header.copy_gigabytes_per_second == 12.5
    assert header.driver is None
    assert header.tests is None


def test_layout_of_the_file_is_fixed(tmp_path):
    """A new or renamed field needs a new schema number: committed files stay readable."""
    path = tmp_path / "cpu.json"
    save(run(ROWS, tests=TESTS), path)
    data = json.loads(path.read_text())
    assert data["schema"] == SCHEMA == 2
    assert list(data) == ["schema", "header", "rows"]
    assert list(data["header"]) == [
        "device",
        "date",
        "commit",
        "hardware",
        "driver",
        "versions",
        "copy_gigabytes_per_second",
        "tests",
    ]
    hardware = ["kind", "name", "cpu", "cores", "threads", "memory_bytes"]
    assert list(data["header"]["hardware"]) == hardware
    assert list(data["header"]["tests"]) == [
        "source",
        "date",
        "complete",
        "passed",
        "failed",
        "skipped",
        "seconds",
        "failures",
    ]
    assert list(data["rows"][0]) == [
        "case",
        "dtype",
        "pass",
        "clock",
        "provider",
        "role",
        "status",
        "reason",
        "rounds",
        "milliseconds",
        "quartiles",
        "fraction_of_copy",
        "peak_mebibytes",
        "saved_mebibytes",
        "error",
        "first_call_milliseconds",
        "other_load",
        "commit",
        "source",
        "date",
    ]
    assert data["rows"][2]["case"] == {
        "shape": [2, 64, 96, 80],
        "kernel_size": 3,
        "form": "image",
        "layout": "channels_last",
        "normalize": "softmax",
    }
    assert data["rows"][2]["dtype"] == "bfloat16+float32"
    assert data["rows"][2]["pass"] == "backward"


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "bfloat16")], ids="+".join)
def test_types_are_told_from_one_word(dtypes):
    row = measured(case=Case(1, 3, 8, 8, 3, "pixel", *dtypes))
    assert row_from_json(row_to_json(row) | {"quartiles": list(row.quartiles)} | _case(row)) == row


def _case(row):
    """The case as it is after a way through JSON, which has no tuples."""
    return json.loads(json.dumps({"case": row_to_json(row)["case"]}))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda data: data.update(schema=99), "expected schema 2, got 99"),
        (lambda data: data.pop("rows"), "expected schema, header and a list of rows"),
        (lambda data: data.update(extra=1), "expected schema, header and a list of rows"),
        (lambda data: data.update(rows={}), "expected schema, header and a list of rows"),
        (lambda data: data["header"].pop("commit"), r"\.header: expected the fields"),
        (lambda data: data["rows"][1].pop("milliseconds"), r"\.rows\[1\]: expected the fields"),
        (
            lambda data: data["rows"][0].update(milliseconds="3 ms"),
            r"\.rows\[0\]\.milliseconds: expected float, got '3 ms'",
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
            lambda data: data["rows"][0]["case"].update(shape=[1, 3, 8]),
            r"\.rows\[0\]\.case\.shape: expected tuple",
        ),
        (
            lambda data: data["rows"][0]["case"].update(form="row"),
            r"\.rows\[0\]: channel_filter: expected one of",
        ),
        (lambda data: data["rows"][0].update(dtype="float33"), r"\.rows\[0\]: 'float33' is not"),
        (lambda data: data["header"].update(versions=[]), r"\.versions: expected an object"),
        (lambda data: data["header"]["versions"].update(torch=2), r"\.torch: expected str"),
    ],
)
def test_other_layouts_are_refused_and_named(harm, named, tmp_path):
    path = tmp_path / "cpu.json"
    save(run(ROWS), path)
    data = json.loads(path.read_text())
    harm(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=named):
        load(path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        load(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema": 2,')
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        load(broken)
    broken.write_text("[]")
    with pytest.raises(ValueError, match="expected schema 2, got None"):
        load(broken)


def test_newer_rows_replace_older_ones_in_their_place():
    newer = [measured(milliseconds=9.0), measured("eager_slices", 1.0)]
    merged = merge(ROWS, newer)
    assert [row.provider for row in merged] == [*(row.provider for row in ROWS), "eager_slices"]
    assert merged[0].milliseconds == 9.0
    # Another clock, pass or case is another row.
    assert len(merge(ROWS, [measured(clock=DEVICE)])) == len(ROWS) + 1
    assert len(merge(ROWS, [measured(case=replace(CASE, normalize=SOFTMAX))])) == len(ROWS) + 1


def test_groups_are_rows_of_one_case_pass_and_clock():
    groups = groups_of(ROWS)
    assert [len(rows) for rows in groups.values()] == [4, 1]
    assert list(groups) == [f"{CASE.name} forward", f"{MIXED.name} backward"]


def test_durations_become_median_and_quartiles_in_milliseconds():
    row = with_durations(measured(), [0.001, 0.002, 0.003, 0.004, 0.005])
    assert (row.rounds, row.milliseconds, row.quartiles) == (5, 3.0, (2.0, 4.0))
    once = with_durations(measured(), [0.25])
    assert (once.milliseconds, once.quartiles) == (250.0, (250.0, 250.0))


def test_stamp_says_when_and_from_which_sources():
    row = stamped(measured(commit="", source="", date=""))
    assert row.commit
    assert len(row.source) == 12
    assert row.date > DATE


# 1 MiB of results and 2 MiB more; by hand, float32, 3 channels, 9 taps, per pixel: 24 numbers of
# arguments and 3 of the result for each of 4096 pixels.
@pytest.mark.parametrize(
    ("pass_name", "results", "tensors"),
    [(FORWARD, 3, 18), (BACKWARD, 15, 33), (FORWARD_BACKWARD, 18, 36)],
)
def test_memory_beyond_results_is_a_share_of_all_tensors(pass_name, results, tensors):
    case = Case(1, 3, 64, 64, 3)
    number = 64 * 64 * 4
    peak = (results * number + 1000) / MEBIBYTE
    row = measured(case=case, pass_name=pass_name, peak_mebibytes=peak)
    assert row.memory_beyond_results == pytest.approx(1000 / (tensors * number))
    exact = replace(row, peak_mebibytes=results * number / MEBIBYTE)
    assert exact.memory_beyond_results == 0
    assert replace(row, peak_mebibytes=None).memory_beyond_results is None


def test_rates_are_those_of_the_bytes_that_must_move():
    row = measured(milliseconds=2.0, case=Case(1, 3, 100, 100, 3), clock=WALL)
    assert row.gigabytes_per_second == pytest.approx(72 * 100 * 100 / 2e-3 / 1e9)
    assert skipped("ddf_cuda").gigabytes_per_second is None


def test_empty_results_are_results(tmp_path):
    path = tmp_path / "cpu.json"
    save(run([]), path)
    assert load(path) == Results(run([]).header, [])
