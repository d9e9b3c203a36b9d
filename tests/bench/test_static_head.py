"""The table of counts of the fused head: what it covers, its file, and that nothing spills."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

from bench import static_head
from bench.compiled import compile_launch
from bench.sass import resource_usage
from bench.static_head import FILE, SCHEMA, collect, line, load, missed, save
from bench.static_head_count import HeadProblem, HeadRow, count_head, head_launches
from bench.static_problems import BACKWARD, FORWARD
from kpnops._decoupled_filter import route

compiles = pytest.mark.skipif(
    route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
)
PROBLEM = HeadProblem(3, 21, 64, "tf32")
ROW = HeadRow(
    name="C3 K21 F64 tf32 forward head_fwd_kernel interior",
    problem=PROBLEM,
    pass_name=FORWARD,
    kernel="_head_fwd_kernel",
    warps=4,
    registers=90,
    stack_bytes=0,
    instructions=1168,
    compile_seconds=2.6,
    loop_instructions=509,
    per_tap=24.2,
    counts={"LDG": 69, "HGMMA": 16},
)


def test_rows_cover_the_forward_and_the_backward_in_every_precision():
    names = static_head.names()
    assert len(set(names)) == len(names)
    for size in (5, 11, 21):
        for mode in ("tf32", "bf16", "ieee"):
            start = f"C3 K{size} F64 {mode} "
            assert [name.removeprefix(start) for name in names if name.startswith(start)] == [
                "forward head_fwd_kernel interior",
                "forward head_fwd_kernel border",
                "backward patch_filters_kernel",
                "backward patch_bwd_input_kernel",
                "backward patch_bwd_logits_kernel",
                "backward patch_bwd_features_kernel",
                "backward patch_bwd_weight_kernel",
            ]


def test_modes_are_what_the_launches_multiply_in():
    for mode, matrix, precision in (
        ("tf32", True, "tf32"),
        ("bf16", True, "ieee"),
        ("ieee", False, "ieee"),
    ):
        for _, _, launch in head_launches(replace(PROBLEM, mode=mode)):
            if "OPERAND" in launch.constants:  # forms logits
                assert launch.constants["MATRIX"] is matrix
                assert launch.constants["PRECISION"] == precision


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    other = replace(ROW, name="C3 K5 other", compile_seconds=None, per_tap=None)
    path = tmp_path / "new folder" / "static-head.json"
    results = collect([ROW, other], "sm_90")
    save(results, path)
    assert load(path) == replace(results, rows=[replace(ROW, compile_seconds=3.0), other])
    assert sum('"name"' in row for row in path.read_text().splitlines()) == 2
    assert [file.name for file in path.parent.iterdir()] == ["static-head.json"]


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda data: data.update(schema=99), f"expected schema {SCHEMA}, got 99"),
        (lambda data: data.pop("target"), "expected the fields"),
        (lambda data: data["rows"][0].update(registers="90"), r"\.rows\[0\]\.registers"),
        (lambda data: data["rows"][0]["problem"].update(mode=3), r"\.problem\.mode"),
    ],
)
def test_another_schema_is_refused(tmp_path, harm, named):
    path = tmp_path / "static-head.json"
    save(collect([ROW], "sm_90"), path)
    data = json.loads(path.read_text())
    harm(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=named):
        load(path)


def test_what_is_no_file_of_counts_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="static_head --save"):
        load(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(ValueError, match="not JSON"):
        load(tmp_path / "text.json")


def test_the_committed_file_has_a_row_for_every_launch_and_none_spills():
    """Else `python -m bench.static_head --save` has to be run again."""
    results = load(FILE)
    assert results.target == static_head.TARGET
    assert [row.name for row in results.rows] == sorted(static_head.names())
    assert not [row.name for row in results.rows if missed(row)]


def test_a_spill_is_missed_and_shown():
    assert missed(ROW) == []
    assert missed(replace(ROW, stack_bytes=8)) == ["spills 8 bytes"]
    heading = static_head.heading()
    assert line(ROW).endswith("24.2  LDG 69 HGMMA 16")
    assert heading.index("/tap") == line(ROW).index("24.2")


@pytest.mark.parametrize(
    "arguments", [["--only", "K21 none-such"], ["--save", "--only", "K21"], ["--target", "gfx942"]]
)
def test_wrong_arguments_are_refused(arguments, capsys, monkeypatch):
    monkeypatch.setattr(static_head, "compile_cold", lambda *given: pytest.fail("compiles"))
    with pytest.raises(SystemExit) as stopped:
        static_head.main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


@compiles
def test_the_command(capsys, monkeypatch):
    only = "K21 ieee forward interior"
    monkeypatch.setattr(static_head, "compile_cold", lambda *given: None)  # to warm up
    assert static_head.main(["--only", only]) == 0
    heading, row, end = capsys.readouterr().out.splitlines()
    assert heading.startswith("row")
    assert row.startswith("C3 K21 F64 ieee forward head_fwd_kernel interior")
    assert end == "1 rows, 0 limits missed"
    monkeypatch.setattr(static_head, "missed", lambda row: ["too slow"])
    assert static_head.main(["--only", only]) == 1
    assert "    missed: too slow" in capsys.readouterr().out.splitlines()


@compiles
def test_instructions_for_a_tap_are_more_than_its_products():
    """Without matrix units 64 products for each tap and 3 for its channels, at least; on them the
    latter and an exponential."""
    rows = {}
    for mode in ("ieee", "tf32"):
        problem = replace(PROBLEM, kernel_size=11, mode=mode)
        pass_name, name, launch = next(iter(head_launches(problem)))
        rows[mode] = count_head(problem, pass_name, name, launch, "sm_90", cold=False)
        assert rows[mode].compile_seconds is None
    assert 64 + 3 < rows["ieee"].per_tap < 3 * (64 + 3)
    assert 3 + 1 < rows["tf32"].per_tap < 64
    assert rows["ieee"].pass_name == FORWARD


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tf32", "bf16", "ieee"])
@pytest.mark.parametrize("kernel_size", [5, 11, 21])
def test_nothing_spills(kernel_size, mode):
    for pass_name, name, launch in head_launches(HeadProblem(3, kernel_size, 64, mode)):
        _, spilled = resource_usage(compile_launch(launch, "sm_90").asm["cubin"])
        assert spilled == 0, name
        assert pass_name in (FORWARD, BACKWARD)
