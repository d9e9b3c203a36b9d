"""The table of counts: what it covers, how its file is read and written, what breaks its limits."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

import torch
import triton
import triton.language as tl

from bench import static
from bench.compiled import specialise
from bench.static_count import Row, count, pointers
from bench.static_gates import missed
from bench.static_problems import FORWARD, SIZES, Problem, launches, problems
from bench.static_results import FILE, SCHEMA, StaticResults, collect, load, save
from kpnops._decoupled_filter import route
from kpnops._decoupled_filter.plan import Launch

compiles = pytest.mark.skipif(
    route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
)
PROBLEM = Problem(64, 3, "float32", "float32", "pixel", "W16")
ROW = Row(
    name="C64 K3 float32 pixel W16 forward tile_fwd_kernel",
    problem=PROBLEM,
    pass_name=FORWARD,
    kernel="_tile_fwd_kernel",
    warps=4,
    registers=160,
    stack_bytes=0,
    instructions=1829,
    compile_seconds=1.6,
    outputs=65536,
    loop_instructions=145,
    loop_outputs=1024,
    loop_per_output=18.12,
    path_per_output=18.84,
    input_numbers_per_output=3.0,
    input_bytes_per_output=12.0,
    pixels_per_spatial_load=2.0,
    counts={"LDG": 22, "STG": 4, "FFMA": 80},
)


def test_rows_cover_every_fast_launch_once():
    names = static.names()
    assert len(set(names)) == len(names)
    kernels = {name.split()[-1] for name in names}
    assert {
        "tile_fwd_kernel",
        "tile_bwd_filters_kernel",
        "tile_bwd_channel_kernel",
        "fused_bwd_kernel",
    } <= kernels
    for dtypes in ("float32", "bfloat16", "bfloat16+float32"):
        for kernel_size, width in ((3, "W16"), (3, "Wodd"), (5, "W16"), (5, "Wodd"), (7, "W16")):
            start = f"C64 K{kernel_size} {dtypes} pixel {width} "
            assert any(name.startswith(start + "forward") for name in names)
            assert any(name.startswith(start + "backward grad_input") for name in names)


def test_launches_of_other_widths_join_no_loads():
    """Triton is told what is a multiple of 16: at one width strides of rows and planes, not at the
    other."""

    def strides(width):
        (_, launch), *_ = launches(replace(PROBLEM, width=width))
        found = specialise(launch)
        place = launch.kernel.arg_names.index("x_strides")
        return {path[1] for path in found.attributes if path[0] == place}

    assert strides("W16") >= {1, 2}
    assert not strides("Wodd") & {1, 2}


def test_programs_and_pixels_come_out_even():
    """What is counted for a program holds only if no tile reaches over the edge."""
    for problem in problems():
        for _, launch in launches(problem):
            rows = launch.constants.get("BLOCK_H", launch.constants.get("ROWS", 1))
            columns = launch.constants.get("BLOCK_W", 1)
            height, width = SIZES[problem.width]
            assert height % rows in (0, rows - 1)
            assert width % columns in (0, columns - 1)


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    other = replace(ROW, name="C3 " + ROW.name, compile_seconds=None, loop_per_output=None)
    results = collect([ROW, other], "sm_90")
    path = tmp_path / "new folder" / "static.json"
    save(results, path)
    assert [row.name for row in results.rows] == [other.name, ROW.name]
    kept = replace(ROW, compile_seconds=2.0)
    assert load(path) == replace(results, rows=[other, kept])
    assert [file.name for file in path.parent.iterdir()] == ["static.json"]


def test_layout_of_the_file_is_fixed(tmp_path):
    """A row is a line; a new or renamed field needs a new schema number."""
    path = tmp_path / "static.json"
    save(collect([ROW, replace(ROW, name="other")], "sm_90"), path)
    text = path.read_text()
    assert sum('"name"' in line for line in text.splitlines()) == 2
    data = json.loads(text)
    assert SCHEMA == 1
    assert list(data) == ["schema", "date", "target", "versions", "rows"]
    assert {"python", "kpnops", "torch", "triton"} == data["versions"].keys()
    assert list(data["rows"][0]) == [
        "name",
        "problem",
        "pass_name",
        "kernel",
        "warps",
        "registers",
        "stack_bytes",
        "instructions",
        "compile_seconds",
        "outputs",
        "loop_instructions",
        "loop_outputs",
        "loop_per_output",
        "path_per_output",
        "input_numbers_per_output",
        "input_bytes_per_output",
        "pixels_per_spatial_load",
        "counts",
    ]
    assert data["rows"][0]["problem"] == {
        "channels": 64,
        "kernel_size": 3,
        "input_dtype": "float32",
        "filter_dtype": "float32",
        "form": "pixel",
        "width": "W16",
    }


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda data: data.update(schema=99), "expected schema 1, got 99"),
        (lambda data: data.pop("target"), "expected the fields"),
        (lambda data: data["rows"][0].update(extra=1), r"\.rows\[0\]: expected the fields"),
        (lambda data: data["rows"][0].update(registers="160"), r"\.rows\[0\]\.registers"),
        (lambda data: data["rows"][0]["problem"].update(form=3), r"\.problem\.form"),
        (lambda data: data["rows"][0]["counts"].update(LDG=None), r"\.counts\.LDG"),
        (lambda data: data.update(rows={}), r"\.rows: expected"),
    ],
)
def test_another_schema_is_refused(tmp_path, harm, named):
    path = tmp_path / "static.json"
    save(collect([ROW], "sm_90"), path)
    data = json.loads(path.read_text())
    harm(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=named):
        load(path)


def test_what_is_no_file_of_counts_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--save"):
        load(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(ValueError, match="not JSON"):
        load(tmp_path / "text.json")


def test_the_committed_file_has_a_row_for_every_launch():
    """Else `python -m bench.static --save` has to be run again."""
    results = load(FILE)
    assert isinstance(results, StaticResults)
    assert results.target == static.TARGET
    assert [row.name for row in results.rows] == sorted(static.names())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stack_bytes": 8}, "spills 8 bytes"),
        ({"instructions": 6001}, "6001 instructions > 6000"),
        ({"registers": 169}, "169 registers > 168"),
        ({"input_bytes_per_output": 14.5}, "3.62 input words"),
        ({"pixels_per_spatial_load": 1.0}, "1.0 pixels"),
        ({"loop_per_output": 22.01}, "22.01 thread instructions"),
        ({"counts": {"HMMA": 1}, "path_per_output": 30.1}, None),
        ({"pass_name": "backward", "loop_per_output": 99.0}, None),
        ({"problem": replace(PROBLEM, form="image"), "loop_per_output": 99.0}, None),
        ({"problem": replace(PROBLEM, channels=3), "input_bytes_per_output": 14.5}, None),
        ({"problem": replace(PROBLEM, width="Wodd"), "pixels_per_spatial_load": 1.0}, None),
        ({"problem": replace(PROBLEM, width="Wodd"), "loop_per_output": 29.1}, "29.1 thread"),
    ],
)
def test_limits(change, sentence):
    assert missed(ROW) == []
    found = missed(replace(ROW, **change))
    assert len(found) == (sentence is not None)
    if sentence:
        assert found[0].startswith(sentence)


BANDED = replace(
    ROW,
    problem=replace(PROBLEM, input_dtype="bfloat16", filter_dtype="bfloat16"),
    counts={"HGMMA": 12},
    loop_instructions=None,
    loop_outputs=None,
    loop_per_output=None,
    path_per_output=30.0,
)


def test_limits_on_tensor_cores():
    assert missed(BANDED) == []
    (sentence,) = missed(replace(BANDED, path_per_output=30.1))
    assert sentence.startswith("30.1 thread instructions")
    (sentence,) = missed(replace(BANDED, registers=169))
    assert sentence == "169 registers > 168"
    assert missed(replace(BANDED, pixels_per_spatial_load=1.0)) == []


def test_a_row_as_a_line():
    line, heading = static.line(replace(BANDED, compile_seconds=None)), static.heading()
    assert line.startswith(BANDED.name)
    assert line.endswith("HGMMA 12")
    assert heading.index("path/output") + len("path/output") == line.index("30.0") + 4


@compiles
def test_the_command(capsys, monkeypatch):
    only = "C64 K3 float32 none forward"
    monkeypatch.setattr(static, "compile_cold", lambda launch, target: None)  # to warm up
    assert static.main(["--only", only]) == 0
    heading, line, end = capsys.readouterr().out.splitlines()
    assert heading.startswith("row")
    assert line.startswith("C64 K3 float32 none W16 forward tile_fwd_kernel")
    assert end == "1 rows, 0 limits missed"
    monkeypatch.setattr(static, "missed", lambda row: ["too slow"])
    monkeypatch.setattr(static, "count", lambda *arguments, cold: ROW)
    assert static.main(["--only", only]) == 1
    assert "    missed: too slow" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "arguments", [["--only", "C64 none-such"], ["--save", "--only", "C3"], ["--target", "gfx942"]]
)
def test_wrong_arguments_are_refused(arguments, capsys, monkeypatch):
    monkeypatch.setattr(static, "compile_cold", lambda launch, target: pytest.fail("compiles"))
    with pytest.raises(SystemExit) as stopped:
        static.main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_launch_that_can_not_be_counted_is_named(monkeypatch, capsys):
    def refuse(*arguments, cold):
        raise ValueError("nothing tells how often its loop is run")

    monkeypatch.setattr(static, "count", refuse)
    monkeypatch.setattr(static, "compile_cold", lambda launch, target: None)
    assert static.main(["--only", "C64 K3 float32 none forward"]) == 1
    assert "is not counted: nothing tells" in capsys.readouterr().out


@triton.jit
def _two_taps_kernel(
    x_ptr, spatial_ptr, out_ptr, C, plane, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """Each pixel times the sum of two taps, for ROWS times BLOCK pixels and all channels."""
    offs = tl.program_id(0) * (ROWS * BLOCK) + tl.arange(0, BLOCK)
    weights = ()
    for row in tl.static_range(ROWS):
        first = tl.load(spatial_ptr + offs + row * BLOCK)
        weights = weights + (first + tl.load(spatial_ptr + plane + offs + row * BLOCK),)
    for _ in range(C):
        for row in tl.static_range(ROWS):
            value = tl.load(x_ptr + offs + row * BLOCK)
            tl.store(out_ptr + offs + row * BLOCK, value * weights[row])
        x_ptr += plane
        out_ptr += plane


@compiles
@pytest.mark.parametrize(("block", "rows"), [(256, 2), (128, 4)])
def test_counts_of_a_known_launch(block, rows):
    """However often its loop over channels is unrolled."""
    channels, height, width = 64, 64, 512
    image = torch.empty(1, channels, height, width, device="meta")
    launch = Launch(
        kernel=_two_taps_kernel,
        programs=height * width // (rows * block),
        arguments={
            "x_ptr": image,
            "spatial_ptr": torch.empty(1, 2, height, width, device="meta"),
            "out_ptr": image,
            "C": channels,
            "plane": height * width,
        },
        constants={"BLOCK": block, "ROWS": rows},
        num_warps=4,
    )
    row = count(PROBLEM, FORWARD, launch, "sm_90", cold=False)
    assert row.loop_instructions is not None
    assert row.loop_outputs is not None
    assert row.loop_per_output is not None
    pixels = rows * block
    assert row.outputs == pixels * channels
    assert row.loop_outputs % pixels == 0
    assert row.counts["LDG"] == row.counts["STG"] == rows * row.loop_outputs / pixels
    assert row.loop_per_output == round(row.loop_instructions * 128 / row.loop_outputs, 2)
    around = (row.path_per_output - row.loop_per_output) * row.outputs / 128
    # the whole kernel, but for other variants of the loop; figures are rounded
    assert 0 < around < row.instructions + 0.01 * row.outputs / 128
    assert (row.input_numbers_per_output, row.input_bytes_per_output) == (1.0, 4.0)
    assert row.pixels_per_spatial_load == block / 128
    assert row.stack_bytes == 0
    assert row.compile_seconds is None


def test_every_pointer_of_a_launch_is_followed():
    (_, launch), *_ = launches(PROBLEM)
    assert isinstance(launch, Launch)
    names = [name for name in pointers(launch) if name]
    assert names == [name for name in launch.kernel.arg_names if name.endswith("_ptr")]
