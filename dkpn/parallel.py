"""Several processes that train one network together, each on its share of every batch.

Plain ``torch.distributed``: it needs no further package, and the loop reads as it does for one
process. Gradients are averaged in one message after the backward pass, 8 MB for two million
parameters; a wrapper such as ``DistributedDataParallel`` would hide part of that time, but forbids
parameters without a gradient and asks for care where a batch is made in parts.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# One process validates and writes while the others wait for it.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Processes:
    """This process among all that train together; by default it is alone.

    Args:
        rank: number of this process, from 0.
        count: of all of them.
        local_rank: number of this process among those on its machine, from 0.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one process that validates, prints and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Name the GPU of this process where several share the work, and ``"auto"`` or ``"cuda"``
        leaves open which."""
        open_choice = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local_rank}" if self.count > 1 and open_choice else name

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of equal shapes in all processes, by their means over the processes."""
        if self.count == 1 or not tensors:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(message)
        message /= self.count
        for tensor, mean in zip(
            tensors, message.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(mean.view(tensor.shape))

    def agree(self, signal_number: int, seconds: float) -> tuple[int, float]:
        """Let all processes stop, and change the learning rate, at the same iteration.

        Args:
            signal_number: that this process has received, 0: none.
            seconds: of training on this process's clock.

        Returns:
            The largest signal number of all processes, and the seconds of the first one.
        """
        if self.count == 1:
            return signal_number, seconds
        # On the CPU, so that a GPU is not waited for.
        values = torch.tensor([signal_number, seconds if self.leads else 0.0], dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values[0]), float(values[1])

    def same(self, number: int) -> bool:
        """Whether all processes have the same integer, of less than 63 bits."""
        if self.count == 1:
            return True
        values = torch.tensor([number, -number])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values[0]) == -int(values[1])

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.same(0)


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that ``torchrun``, or a cluster, has started together with this one.

    They are known from the environment: ``RANK`` and ``WORLD_SIZE`` number and count them,
    ``LOCAL_RANK`` numbers those of one machine, ``MASTER_ADDR`` and ``MASTER_PORT`` are where the
    first one is found. Without ``WORLD_SIZE`` a process is alone.

    Yields:
        The processes.

    Raises:
        ValueError: one of the other variables is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(
                f"{name}: expected in the environment beside WORLD_SIZE; start with torchrun, or "
                "unset WORLD_SIZE to train in one process"
            )
    # Without a backend named: gloo for tensors on the CPU, NCCL for those on a GPU.
    dist.init_process_group(timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()
