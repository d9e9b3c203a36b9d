"""Compile planned launches for a target without a GPU, as the launch would be compiled on one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
class Specialisation:
    """What Triton compiles a kernel for: types, constants, and which values are multiples of 16."""

    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list]
    parameters: list[str]  # of the compiled kernel in their order; "x_strides[2]" in a tuple

    @property
    def key(self) -> str:
        """Equal where the same is compiled."""
        return repr((self.signature, self.constants, self.attributes))


def specialise(launch: Launch) -> Specialisation:
    """Return what Triton makes of a launch whose pointers and strides are multiples of 16 where
    their values are; tensors start at such addresses."""
    found = Specialisation({}, {}, {}, [])
    unspecialised = set(launch.kernel.do_not_specialize or [])
    for index, name in enumerate(launch.kernel.arg_names):
        if name in launch.constants:
            found.signature[name] = "constexpr"
            found.constants[(index,)] = launch.constants[name]
            continue
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            found.signature[name] = _DTYPES[value.dtype]
            found.attributes[(index,)] = [["tt.divisibility", 16]]
            found.parameters.append(name)
        elif isinstance(value, tuple):
            found.signature[name] = tuple(
                _integer((index, place), f"{name}[{place}]", item, found)
                for place, item in enumerate(value)
            )
        elif name in unspecialised:
            found.signature[name] = "i32" if value < 2**31 else "i64"
            found.parameters.append(name)
        else:
            found.signature[name] = _integer((index,), name, value, found)
    return found


def _integer(path: tuple[int, ...], name: str, value: int, found: Specialisation) -> str:
    if value == 1:
        found.constants[path] = 1
        return "constexpr"
    if value % 16 == 0:
        found.attributes[path] = [["tt.divisibility", 16]]
    found.parameters.append(name)
    return "i32" if value < 2**31 else "i64"


def compile_launch(launch: Launch, target: str) -> Any:
    """Return what Triton compiles of a launch, with its ``asm``.

    Args:
        launch: a planned launch, of tensors on any device.
        target: a key of TARGETS.
    """
    found = specialise(launch)
    source = ASTSource(
        fn=launch.kernel,
        signature=found.signature,
        constexprs=found.constants,
        attrs=found.attributes,
    )
    options = launch.options(nvidia=not target.startswith("gfx"))
    return triton.compile(source, target=TARGETS[target], options=options)


def compile_cold(launch: Launch, target: str) -> tuple[Any, float]:
    """Compile with nothing in Triton's cache; the seconds too, of the processor: a busy machine
    stretches those of the clock."""
    with _empty_cache():
        start = _processor_seconds()
        compiled = compile_launch(launch, target)
        return compiled, _processor_seconds() - start


def _processor_seconds() -> float:
    """Of this process and of those that it ran, as the assembler is one."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def _empty_cache() -> Iterator[None]:
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = before
