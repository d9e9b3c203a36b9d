"""Compile planned launches for a target without a GPU, and read what the binary says of registers
and spills."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kpnops._decoupled_filter.plan import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}

_DTYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}


@dataclass(frozen=True)
class Compiled:
    """Registers of a thread and bytes that spill to memory."""

    registers: int
    spilled_bytes: int


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Compile as the launch would on a GPU whose pointers and strides are multiples of 16, as
    Triton specialises."""
    signature, constants, attributes = {}, {}, {}
    unspecialised = set(launch.kernel.do_not_specialize or [])
    for index, name in enumerate(launch.kernel.arg_names):
        if name in launch.constants:
            signature[name] = "constexpr"
            constants[(index,)] = launch.constants[name]
            continue
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = _DTYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, tuple):
            kinds = []
            for position, item in enumerate(value):
                kinds.append(_integer((index, position), item, constants, attributes))
            signature[name] = tuple(kinds)
        elif name in unspecialised:
            signature[name] = "i32" if value < 2**31 else "i64"
        else:
            signature[name] = _integer((index,), value, constants, attributes)
    source = ASTSource(
        fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes
    )
    options = launch.options(nvidia=not target.startswith("gfx"))
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    return _amd(compiled) if target.startswith("gfx") else _nvidia(compiled)


def _integer(path: tuple[int, ...], value: int, constants: dict, attributes: dict) -> str:
    if value == 1:
        constants[path] = 1
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if value < 2**31 else "i64"


def _nvidia(compiled) -> Compiled:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return Compiled(int(registers), int(stack))


def _amd(compiled) -> Compiled:
    # scalar registers may spill (into vector registers); vector registers and private memory may
    # not
    text = compiled.asm["amdgcn"]
    numbers = {
        key: int(re.search(rf"\.{key}:\s+(\d+)", text).group(1))
        for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    }
    spilled = 4 * numbers["vgpr_spill_count"] + numbers["private_segment_fixed_size"]
    return Compiled(numbers["vgpr_count"], spilled)
