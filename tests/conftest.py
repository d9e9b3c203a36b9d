"""Routes and fixtures that all tests share.

`pytest` runs the CPU path; `TRITON_INTERPRET=1 pytest -m interpreted` the Triton kernels on CPU
tensors, in a process of its own, because Triton decides once, when a kernel is defined. A test that
takes the fixture `device` is written once and runs on the CPU, in the interpreter and on a GPU.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import INTERPRETED, ROUTES


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slice", metavar="I/N", help="run only every N-th test, from the I-th on")


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("slice")
    if part is not None:
        first, step = (int(number) for number in part.split("/"))
        chosen = items[first::step]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    for item in items:
        needs_interpreter = item.get_closest_marker("interpreted") is not None
        if needs_interpreter and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1"))
        elif INTERPRETED and not needs_interpreter:
            item.add_marker(pytest.mark.skip(reason="makes no sense with TRITON_INTERPRET=1"))
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm GPU"))


@pytest.fixture(params=ROUTES)
def device(request: pytest.FixtureRequest) -> str:
    """Device of the tensors of a test; CPU tensors run the kernels in the interpreter's process."""
    return "cpu" if request.param == "interpreted" else request.param


@pytest.fixture
def poisoned_allocations() -> Iterator[None]:
    """Fill fresh memory with NaN, so that an element that is never written shows."""
    mode = torch.get_deterministic_debug_mode()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fills


class GuardedAllocations:
    """Stands in for PyTorch's allocators and puts a margin of one value around each block."""

    margin = 64  # elements: keeps the alignment that a kernel may assume
    guard = -12288.0  # exact in every floating-point format

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.blocks: list[tuple[Tensor, int]] = []
        for name in ("empty", "empty_like", "empty_strided", "zeros", "zeros_like"):
            monkeypatch.setattr(torch, name, self.guarded(getattr(torch, name)))
        for name in ("new_empty", "new_empty_strided", "new_zeros"):
            monkeypatch.setattr(Tensor, name, self.guarded(getattr(Tensor, name)))

    def guarded(self, allocate: Any) -> Any:
        def allocate_guarded(*args: Any, **options: Any) -> Tensor:
            plain = allocate(*args, **options)
            if plain.device.type == "meta" or not plain.is_floating_point():
                return plain
            extent = plain.untyped_storage().nbytes() // plain.element_size()
            block = torch.full((extent + 2 * self.margin,), self.guard, dtype=plain.dtype)
            view = block.as_strided(plain.shape, plain.stride(), self.margin)
            view.copy_(plain)
            self.blocks.append((block, extent))
            return view

        return allocate_guarded

    def check(self) -> None:
        """Raise AssertionError where a margin was written."""
        for block, extent in self.blocks:
            margins = torch.cat([block[: self.margin], block[self.margin + extent :]])
            if not bool((margins == self.guard).all()):
                raise AssertionError(f"a store went outside a block of {extent} elements")


@pytest.fixture
def guarded_allocations(monkeypatch: pytest.MonkeyPatch) -> GuardedAllocations:
    return GuardedAllocations(monkeypatch)
