"""Counts from disassemblies: texts written by hand, and small kernels whose counts are known."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

import triton
import triton.language as tl
from triton.compiler import ASTSource

from bench.compiled import TARGETS
from bench.sass import Kernel, parameter_offsets, parse, read_kernel, traced
from bench.sass_path import hot_path, loops
from kpnops._decoupled_filter import route

compiles = pytest.mark.skipif(
    route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
)


def text(*lines):
    """A disassembly: instructions as they are printed, and labels."""
    printed, address = [], 0
    for line in lines:
        if line.endswith(":"):
            printed.append(line)
        else:
            printed.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join(printed)


def kernel(*lines, offsets=None):
    instructions, labels = parse(text(*lines))
    return Kernel(32, 0, traced(instructions, labels, offsets or {}), labels)


def opcodes(items):
    return [item.opcode for item in items]


def test_an_instruction_has_its_parts():
    source = text(
        "@!P0 LDG.E.64 R8, desc[UR28][R88.64+-0x4]", "@P1 BRA `(.L_x_0)", ".L_x_0:", "EXIT"
    )
    (load, jump, end), labels = parse(source)
    assert (load.address, load.predicate, load.opcode, load.name) == (0, "!P0", "LDG.E.64", "LDG")
    assert load.operands == ("R8", "desc[UR28][R88.64+-0x4]")
    assert (jump.predicate, jump.name, jump.target) == ("P1", "BRA", ".L_x_0")
    assert labels == {".L_x_0": 2}
    assert (end.predicate, end.operands) == ("", ())


@pytest.mark.parametrize(
    ("opcode", "width"),
    [("LDG.E", 4), ("LDG.E.U16", 2), ("STG.E.64", 8), ("LDG.E.128.CONSTANT", 16), ("LDG.E.U8", 1)],
)
def test_width_of_a_load(opcode, width):
    (item,), _ = parse(text(f"{opcode} R0, [R2.64]"))
    assert item.width == width


def test_the_padding_at_the_end_is_left_out():
    instructions, _ = parse(text("NOP", "EXIT", ".L_x_9:", "BRA `(.L_x_9)", "NOP", "NOP"))
    assert opcodes(instructions) == ["NOP", "EXIT"]


TWO_VARIANTS = (
    "ISETP.NE.AND P0, PT, R0, RZ, PT",
    "@P0 BRA `(.L_loop)",
    ".L_masked:",
    "IADD3 R0, R0, R8, RZ",
    "ISETP.LT.AND P2, PT, R0, R7, PT",
    "ISETP.GE.AND P2, PT, R0, RZ, P2",
    "@P2 LDG.E R4, [R2.64]",
    "FFMA R5, R4, R6, R5",
    "FMUL R5, R5, R6",
    "@P1 BRA `(.L_masked)",
    "BRA `(.L_after)",
    ".L_loop:",
    "LDG.E R4, [R2.64]",
    "FFMA R5, R4, R6, R5",
    "@P1 BRA `(.L_loop)",
    ".L_after:",
    "@!P3 EXIT",
    ".L_repair:",
    "LDG.E R4, [R2.64]",
    "IADD3 R2, R2, R9, RZ",
    "IADD3 R2, R2, R9, RZ",
    "FFMA R5, R4, R6, R5",
    "@P1 BRA `(.L_repair)",
    "EXIT",
)


def test_the_loop_without_masks_is_counted_and_no_repair():
    found = hot_path(kernel(*TWO_VARIANTS))
    assert found.loop is not None
    assert opcodes(found.loop.everything) == ["LDG.E", "FFMA", "BRA"]
    assert [item.address for item in found.loop.everything] == [0xA0, 0xB0, 0xC0]
    assert opcodes(found.straight) == ["ISETP.NE.AND", "BRA", "EXIT"]
    assert len(loops(kernel(*TWO_VARIANTS))) == 3


def test_without_a_loop_the_whole_path_is_counted():
    found = hot_path(
        kernel(
            "@P0 BRA `(.L_masked)", "HMMA.16816.F32 R0, R4, R8, R0", "BRA `(.L_after)",
            ".L_masked:", "ISETP.NE.AND P1, PT, R0, RZ, PT", "HMMA.16816.F32 R0, R4, R8, R0",
            ".L_after:", "@!P3 EXIT",
            ".L_repair:", "FFMA R5, R4, R6, R5", "@P1 BRA `(.L_repair)", "EXIT",
        )
    )  # fmt: skip
    assert found.loop is None
    assert opcodes(found.path.everything) == ["BRA", "HMMA.16816.F32", "BRA", "EXIT"]


def test_a_loop_beside_much_more_straight_code_is_a_repair():
    straight = 9 * ["FFMA R5, R4, R6, R5"]
    lines = [*straight, "@!P3 EXIT", ".L_r:", "FFMA R5, R4, R6, R5", "@P1 BRA `(.L_r)", "EXIT"]
    found = hot_path(kernel(*lines))
    assert found.loop is None
    assert len(found.path.everything) == 10
    found = hot_path(kernel(*lines[8:]))
    assert found.loop is not None


def test_a_branch_inside_a_loop_is_followed_once():
    found = hot_path(
        kernel(
            ".L_loop:", "FFMA R5, R4, R6, R5", "@P0 BRA `(.L_other)", "MUFU.EX2 R1, R1",
            "BRA `(.L_next)", ".L_other:", "MUFU.RCP R1, R1", ".L_next:", "@P1 BRA `(.L_loop)",
            "EXIT",
        )
    )  # fmt: skip
    assert found.loop is not None
    assert opcodes(found.loop.everything) == ["FFMA", "BRA", "MUFU.RCP", "BRA"]


def test_a_uniform_branch_has_two_ways_on():
    lines = [".L_loop:", "FFMA R5, R4, R6, R5", "BRA.U UP0, `(.L_loop)", "EXIT"]
    found = hot_path(kernel(*lines))
    assert found.loop is not None
    assert opcodes(found.straight) == ["EXIT"]


def test_what_can_not_be_followed_is_refused():
    with pytest.raises(ValueError, match="computed"):
        hot_path(kernel("BRX R2 -0x10", "EXIT"))
    into_a_loop = [
        "@P0 BRA `(.L_b)", ".L_a:", "FFMA R5, R4, R6, R5", ".L_b:", "FFMA R5, R4, R6, R5",
        "@P1 BRA `(.L_a)", "EXIT",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="two ways in"):
        hot_path(kernel(*into_a_loop))


def addressed(*lines, offsets):
    items = kernel(*lines, offsets=offsets).instructions
    return [set(item.parameters) for item in items if item.name in ("LDG", "STG")]


OFFSETS = {0x210: "x", 0x218: "y"}


def test_an_address_is_followed_through_registers():
    found = addressed(
        "ULDC.64 UR4, c[0x0][0x210]",
        "IMAD.WIDE R2, R0, 0x4, UR4",
        "IADD3 R6, P0, R2, c[0x0][0x220], RZ",  # the parameter of another name: a stride
        "LDG.E R4, desc[UR8][R6.64]",
        "IADD3 R10, P0, R4, c[0x0][0x218], RZ",  # what is loaded brings no pointer with it
        "STG.E desc[UR8][R10.64+0x4], R2",
        "MOV R2, c[0x0][0x218]",
        "LDG.E R4, desc[UR8][R2.64+UR4]",
        offsets=OFFSETS,
    )
    assert found == [{"x"}, {"y"}, {"x", "y"}]


def test_a_wide_load_brings_several_parameters():
    found = addressed(
        "LDCU.128 UR4, c[0x0][0x210]", "LDG.E R4, desc[UR8][UR4.64]", "LDG.E R4, [R2.64+UR6]",
        "LDC.64 R6, c[0x0][0x218]", "LDG.E R4, [R6.64]", "@P0 LDC.64 R6, c[0x0][0x210]",
        "LDG.E R4, [R6.64]", offsets=OFFSETS,
    )  # fmt: skip
    assert found == [{"x"}, {"y"}, {"y"}, {"x", "y"}]


def test_an_address_is_followed_around_a_loop():
    found = addressed(
        "MOV R2, c[0x0][0x210]", ".L_loop:", "LDG.E R4, [R2.64]", "MOV R2, c[0x0][0x218]",
        "@P1 BRA `(.L_loop)", "LDG.E R4, [R2.64]", "MOV R2, RZ", "LDG.E R4, [R2.64]", "EXIT",
        offsets=OFFSETS,
    )  # fmt: skip
    assert found == [{"x", "y"}, {"y"}, set()]


def test_an_address_may_have_two_sources():
    """One on each way, or one that a predicate leaves in place."""
    found = addressed(
        "@P0 BRA `(.L_other)", "MOV R2, c[0x0][0x210]", "BRA `(.L_after)", ".L_other:",
        "MOV R2, c[0x0][0x218]", ".L_after:", "LDG.E R4, [R2.64]", "MOV R2, c[0x0][0x210]",
        "@P1 MOV R2, c[0x0][0x218]", "LDG.E R4, [R2.64]", "EXIT", offsets=OFFSETS,
    )  # fmt: skip
    assert found == [{"x", "y"}, {"x", "y"}]


def test_an_address_is_followed_through_the_stack():
    found = addressed(
        "LDC.64 R2, c[0x0][0x210]", "STL.64 [R1+0x8], R2", "MOV R2, RZ", "LDG.E R4, [R2.64]",
        "LDL.64 R6, [R1+0x8]", "LDG.E R4, [R6.64]", "LDL R8, [R1]", "LDG.E R4, [R8.64]",
        offsets=OFFSETS,
    )  # fmt: skip
    assert found == [set(), {"x"}, set()]


def test_a_subroutine_leaves_no_pointers_in_what_it_writes():
    found = addressed(
        "MOV R2, c[0x0][0x210]", "MOV R6, c[0x0][0x218]", "CALL.REL.NOINC `($divide)",
        "LDG.E R4, [R2.64]", "LDG.E R4, [R6.64]", "EXIT", "$divide:", "MOV R2, R9",
        "RET.REL.NODEC R8 `(kernel)", offsets=OFFSETS,
    )  # fmt: skip
    assert found == [set(), {"y"}]


def test_parameters_without_a_place_are_refused():
    elf = (
        "Attribute: EIATTR_PARAM_CBANK\n Format: EIFMT_SVAL\n Value: 0x9 0x100210\n"
        "Ordinal : 0x1 Offset : 0x8 Size : 0x8\nOrdinal : 0x0 Offset : 0x0 Size : 0x8\n"
    )
    assert parameter_offsets(elf, ["", "y"]) == {0x218: "y"}
    with pytest.raises(ValueError, match="3 parameters"):
        parameter_offsets(elf, ["x", "y", "z"])
    with pytest.raises(ValueError, match="where"):
        parameter_offsets("", [])


def compiled(function, constants, target="sm_90", **types):
    """Compile a kernel whose pointers and integers are multiples of 16."""
    names = function.arg_names
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in types}
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    binary = triton.compile(source, target=TARGETS[target], options={"num_warps": 4})
    pointers = [name if name.endswith("_ptr") else "" for name in types]
    return read_kernel(binary.asm["cubin"], pointers)


@triton.jit
def _three_loads(a_ptr, b_ptr, c_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """A loop of three loads and two products for each element."""
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    other = tl.zeros((BLOCK,), tl.float32)
    for _ in range(n):
        a = tl.load(a_ptr + offs).to(tl.float32)
        b = tl.load(b_ptr + offs).to(tl.float32)
        c = tl.load(c_ptr + offs).to(tl.float32)
        acc = a * b + acc
        other = b * c + other
        a_ptr += BLOCK
        b_ptr += BLOCK
        c_ptr += BLOCK
    tl.store(out_ptr + offs, acc + other)


@compiles
@pytest.mark.parametrize(
    ("target", "dtype", "block", "width"),
    [
        ("sm_80", "fp32", 256, 8),
        ("sm_90", "fp32", 128, 4),
        ("sm_90", "bf16", 1024, 16),
        ("sm_100", "fp32", 256, 8),
    ],
)
def test_counts_of_a_known_loop(target, dtype, block, width):
    """However often the loop is unrolled: three wide loads for two products of every element."""
    pointer = f"*{dtype}"
    found = compiled(
        _three_loads, {"BLOCK": block}, target,
        a_ptr=pointer, b_ptr=pointer, c_ptr=pointer, out_ptr="*fp32", n="i32",
    )  # fmt: skip
    assert found.stack_bytes == 0
    loop = hot_path(found).loop
    assert loop is not None
    items = loop.everything
    products = sum(2 if item.name == "FFMA2" else item.name == "FFMA" for item in items)
    loads = [item for item in items if item.name == "LDG"]
    elements = block // 128
    trips = products // (2 * elements)
    assert products == 2 * elements * trips > 0
    for name in ("a_ptr", "b_ptr", "c_ptr"):
        own = [item.width for item in loads if item.parameters == {name}]
        assert own == trips * [width]
    assert len(loads) == 3 * trips
    assert not [item for item in items if item.name == "STG"]
    stored = [item for item in hot_path(found).straight if item.name == "STG"]
    assert {name for item in stored for name in item.parameters} == {"out_ptr"}
    assert sum(item.width for item in stored) == 4 * elements


@triton.jit
def _two_variants(x_ptr, out_ptr, n, W, BLOCK: tl.constexpr):
    """A loop with masks at the edge, without elsewhere."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    if tl.program_id(0) * BLOCK + BLOCK <= W:
        for _ in range(n):
            value = tl.load(x_ptr + offs)
            acc = value * value + acc
            x_ptr += W
    else:
        for _ in range(n):
            value = tl.load(x_ptr + offs, mask=offs < W, other=0.0)
            acc = value * value + acc
            x_ptr += W
    tl.store(out_ptr + offs, acc, mask=offs < W)


@compiles
def test_the_variant_without_masks_of_a_compiled_kernel():
    found = compiled(
        _two_variants, {"BLOCK": 256}, x_ptr="*fp32", out_ptr="*fp32", n="i32", W="i32"
    )
    loop = hot_path(found).loop
    assert loop is not None
    loads = [item for item in loop.everything if item.name == "LDG"]
    assert loads
    assert not [item for item in loads if item.predicate]
    assert [item for item in found.instructions if item.name == "LDG" and item.predicate]


@triton.jit
def _product(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    """One product on tensor cores, no loop."""
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    offs = rows * SIZE + columns
    tl.store(out_ptr + offs, tl.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs)))


@compiles
def test_a_product_on_tensor_cores_is_a_path():
    found = compiled(_product, {"SIZE": 32}, "sm_80", a_ptr="*bf16", b_ptr="*bf16", out_ptr="*fp32")
    hot = hot_path(found)
    assert hot.loop is None
    # 32^3 products, 16 x 8 x 16 an instruction of a warp, 4 warps
    assert [item.name for item in hot.path.everything].count("HMMA") == 4
    assert len(hot.path.everything) == len(found.instructions)
