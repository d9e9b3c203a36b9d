"""What a compiled kernel for an NVIDIA GPU consists of: registers, stack, instructions, and which
parameter a load or store addresses. No GPU is needed: the tools come with Triton.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

NO_PARAMETER: frozenset[str] = frozenset()
TENSOR_PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA", "QGMMA", "IMMA", "DMMA")
PRODUCTS = ("FFMA", "FFMA2", "DFMA", "FMUL", "FMUL2", "DMUL")
# No register of theirs is written first: what they name is read.
_WITHOUT_RESULT = re.compile(
    r"ST[GSL]?\b|RED|LDGSTS|BRA|BRX|JMP|EXIT|RET|CALL|BAR|BSSY|BSYNC|BREAK|NOP|DEPBAR|LDGDEPBAR"
    r"|MEMBAR|FENCE|WARPSYNC|WARPGROUP|YIELD|UTMA|SYNCS|ERRBAR|CCTL|KILL|NANOSLEEP|BPT"
)
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"\s*([.$][$\w]+):\s*$")
_REGISTER = re.compile(r"\bU?R(?:\d+|Z)\b")
_CONSTANT = re.compile(r"c\[0x0\]\[0x([0-9a-f]+)\]")
_ADDRESS = re.compile(r"(?<!desc)\[([^\]]*R[^\]]*)\]")


@dataclass(frozen=True)
class Instruction:
    """One instruction, with the label that it may jump to."""

    address: int
    predicate: str  # "P0", "!P1", ... or empty
    opcode: str  # with modifiers: "LDG.E.64"
    operands: tuple[str, ...]
    target: str = ""
    parameters: frozenset[str] = NO_PARAMETER  # kernel parameters that a memory address comes from

    @property
    def name(self) -> str:
        """Opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes of a thread that a load or store moves."""
        for part in self.opcode.split(".")[1:]:
            if part in _WIDTHS:
                return _WIDTHS[part]
        return 4


_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Kernel:
    """The disassembly of one kernel."""

    registers: int  # of a thread
    stack_bytes: int
    instructions: tuple[Instruction, ...]  # without the padding at the end
    labels: dict[str, int]  # position in `instructions`


def read_kernel(cubin: bytes, parameters: Iterable[str] = ()) -> Kernel:
    """Disassemble a cubin of one kernel.

    Args:
        cubin: what Triton compiled.
        parameters: names of the kernel's parameters in their order, empty for those that are not
            followed; the compiler's own after them need none.

    Returns:
        The kernel; global loads and stores know the parameters that their addresses come from.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _tool("nvdisasm", "-c", file.name)
        elf = _tool("cuobjdump", "-elf", file.name)
    instructions, labels = parse(text)
    instructions = traced(instructions, labels, parameter_offsets(elf, parameters))
    return Kernel(*resource_usage(cubin), instructions, labels)


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers of a thread and the bytes of its stack, which spills take."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {usage!r}")
    return int(found[1]), int(found[2])


def _tool(name: str, *arguments: str) -> str:
    import triton  # reading a text needs none

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    command = [str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(text: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    """Return the instructions of ``nvdisasm -c`` and the positions of its labels.

    The jump to itself and the NOPs that follow the last instruction are left out.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = len(instructions)
        found = _LINE.search(line)
        if found is None:
            continue
        address, predicate, opcode, rest = found.groups()
        target = re.search(r"`\(([.$\w]+)\)", rest)
        operands = tuple(part.strip() for part in _split(rest))
        instructions.append(
            Instruction(
                int(address, 16), predicate or "", opcode, operands, target[1] if target else ""
            )
        )
    while instructions and (
        instructions[-1].name == "NOP"
        or (
            instructions[-1].name == "BRA"
            and labels.get(instructions[-1].target) == len(instructions) - 1
        )
    ):
        instructions.pop()
    return tuple(instructions), labels


def _split(operands: str) -> list[str]:
    return re.split(r",(?![^\[]*\])", operands) if operands else []


def parameter_offsets(elf: str, names: Iterable[str]) -> dict[int, str]:
    """Return the name of the parameter at each offset in the constant bank, from ``cuobjdump
    -elf``."""
    bank = re.search(r"EIATTR_PARAM_CBANK\s+Format:\s+\S+\s+Value:\s+0x\w+\s+0x(\w+)", elf)
    if bank is None:
        raise ValueError("the cubin does not say where its parameters lie")
    base = int(bank[1], 16) & 0xFFFF
    found = re.findall(r"Ordinal\s*: 0x(\w+)\s+Offset\s*: 0x(\w+)\s+Size\s*: 0x(\w+)", elf)
    places = {int(ordinal, 16): base + int(offset, 16) for ordinal, offset, _ in found}
    names = list(names)
    if len(names) > len(places):
        raise ValueError(f"{len(names)} parameters are named, the kernel has {len(places)}")
    return {places[ordinal]: name for ordinal, name in enumerate(names) if name}


def leaders(instructions: tuple[Instruction, ...], labels: dict[str, int]) -> list[int]:
    """Return the positions at which basic blocks start, in order."""
    starts = {0, *(place for place in labels.values() if place < len(instructions))}
    for index, item in enumerate(instructions):
        if item.name in _ENDING and index + 1 < len(instructions):
            starts.add(index + 1)
    return sorted(starts)


_ENDING = ("BRA", "EXIT", "RET", "BRX", "JMP", "UBRA")


def successors(
    instructions: tuple[Instruction, ...], labels: dict[str, int], last: int
) -> list[int]:
    """Return the positions that may follow the block that ends with instruction ``last``."""
    item = instructions[last]
    # a uniform branch has its condition as an operand: BRA.U UP0, `(.L_x_1)
    conditional = bool(item.predicate) or len(item.operands) > 1
    following = [last + 1] if last + 1 < len(instructions) else []
    if item.name in ("BRX", "JMP"):
        raise ValueError(f"a jump whose target is computed, at {item.address:#x}")
    if item.name in ("EXIT", "RET"):
        return following if item.predicate else []
    if item.name in ("BRA", "UBRA"):
        # a target beyond the end is the padding's jump to itself
        target = labels.get(item.target, len(instructions))
        jump = [target] if target < len(instructions) else []
        return jump + (following if conditional else [])
    return following


def traced(
    instructions: tuple[Instruction, ...], labels: dict[str, int], offsets: dict[int, str]
) -> tuple[Instruction, ...]:
    """Follow parameters through registers along every path, until nothing changes."""
    starts = leaders(instructions, labels)
    ends = dict(zip(starts, [*starts[1:], len(instructions)], strict=True))
    entry: dict[int, dict[str, frozenset[str]]] = {0: {}}
    found: dict[int, frozenset[str]] = {}
    waiting = [0]
    while waiting:
        start = waiting.pop()
        state = dict(entry[start])
        for index in range(start, ends[start]):
            address = _step(instructions[index], state, offsets)
            if address is not None:
                found[index] = address
            if instructions[index].name == "CALL":
                for register in _written_by_call(instructions, labels, index):
                    state[register] = NO_PARAMETER
        for place in successors(instructions, labels, ends[start] - 1):
            known = entry.get(place)
            merged = dict(known or {})
            for register, names in state.items():
                merged[register] = merged.get(register, NO_PARAMETER) | names
            if merged != known:
                entry[place] = merged
                waiting.append(place)
    return tuple(
        item
        if index not in found
        else Instruction(
            item.address, item.predicate, item.opcode, item.operands, item.target, found[index]
        )
        for index, item in enumerate(instructions)
    )


def _written_by_call(
    instructions: tuple[Instruction, ...], labels: dict[str, int], index: int
) -> Iterator[str]:
    """Registers that a subroutine, such as a division, leaves its results and remainders in."""
    for item in instructions[labels.get(instructions[index].target, len(instructions)) :]:
        if item.operands and not _WITHOUT_RESULT.match(item.opcode):
            result = item.operands[0]
            if _REGISTER.fullmatch(result) and not result.endswith("RZ"):
                yield from _written(item, result)
        if item.name == "RET":
            return


def _step(
    item: Instruction, state: dict[str, frozenset[str]], offsets: dict[int, str]
) -> frozenset[str] | None:
    """Update which registers hold what comes from which parameters; return those of an address."""
    address = None
    if item.name in ("LDG", "STG", "RED", "ATOMG", "LDGSTS", "LD", "ST"):
        brackets = [part for operand in item.operands for part in _ADDRESS.findall(operand)]
        # cp.async names the shared address first
        address = _parameters(brackets[-1:], state, offsets)
    if item.name == "STL":
        for place, register in _spilled(item, item.operands[1], item.operands[0]):
            state[place] = state.get(register, NO_PARAMETER)
    if _WITHOUT_RESULT.match(item.opcode) or not item.operands:
        return address
    result = item.operands[0]
    if not _REGISTER.fullmatch(result) or result.endswith("RZ"):
        return address
    if item.name == "LDL":
        for place, register in _spilled(item, result, item.operands[1]):
            state[register] = state.get(place, NO_PARAMETER)
        return address
    constant = _CONSTANT.search(item.operands[-1])
    if item.name in ("LDC", "ULDC", "LDCU") and constant:  # of several parameters, if it is wide
        for word, register in enumerate(_written(item, result)):
            name = offsets.get(int(constant[1], 16) + 4 * word)
            value = frozenset({name}) if name else NO_PARAMETER
            state[register] = value | (state.get(register, value) if item.predicate else value)
        return address
    value = NO_PARAMETER
    if address is None and item.name not in ("LDS", "SHFL"):
        value = _parameters(item.operands[1:], state, offsets)
    for register in _written(item, result):
        state[register] = value | (state.get(register, NO_PARAMETER) if item.predicate else value)
    return address


def _written(item: Instruction, result: str) -> list[str]:
    kind, number = re.fullmatch(r"(U?R)(\d+)", result).groups()  # type: ignore[union-attr]
    words = 1
    if item.name in ("LDG", "LDS", "LDL", "LD", "LDC", "ULDC", "LDCU"):
        words = max(1, item.width // 4)
    elif "WIDE" in item.opcode or "64" in item.opcode.split(".") or item.opcode == "CS2R":
        words = 2
    return [f"{kind}{int(number) + word}" for word in range(words)]


def _spilled(item: Instruction, register: str, address: str) -> Iterator[tuple[str, str]]:
    """Places on the stack, and the registers that are kept there or come from there."""
    offset = re.search(r"\+(-?0x[0-9a-f]+)", address)
    first = int(offset[1], 16) if offset else 0
    found = re.fullmatch(r"R(\d+)", register)
    if found:
        for word in range(max(1, item.width // 4)):
            yield f"stack {first + 4 * word}", f"R{int(found[1]) + word}"


def _parameters(
    operands: Iterable[str], state: dict[str, frozenset[str]], offsets: dict[int, str]
) -> frozenset[str]:
    names = NO_PARAMETER
    for operand in operands:
        for register in _REGISTER.findall(operand):
            names |= state.get(register, NO_PARAMETER)
        constant = _CONSTANT.search(operand)
        if constant and int(constant[1], 16) in offsets:
            names |= {offsets[int(constant[1], 16)]}
    return names
