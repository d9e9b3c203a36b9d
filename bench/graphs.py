"""Calls captured into CUDA graphs: device time without the host's part.

Small problems are host-bound: between two launches the device waits. Replayed from a graph, the
kernels of many calls follow each other as closely as the device allows.
"""

import torch
from torch import Tensor

from bench.operations import Call

# Calls in one graph, so that what starting a replay costs is spread over many.
MOST_CALLS = 24
# A pool for the results of all of them must not take the memory of large problems.
MOST_BYTES = 2**31
WARM_UPS = 3


class GraphCall:
    """Many calls as one graph; calling it replays them all."""

    def __init__(self, rotation: list[Call], count: int):
        """Warm up and capture.

        Args:
            rotation: the calls of one provider, one for each set of inputs, used in turns.
            count: how many calls to capture.
        """
        self.calls = count
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                for call in rotation:
                    call()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for index in range(count):
                rotation[index % len(rotation)]()

    def __call__(self) -> tuple[Tensor, ...]:
        """Replay; the results stay in the graph's own memory."""
        self._graph.replay()
        return ()


def calls_in_graph(rotation_length: int, result_bytes: int) -> int:
    """Return how many calls to capture: a whole number of rotations, few where results are large.

    Args:
        rotation_length: number of sets of inputs.
        result_bytes: bytes that one call allocates.

    Returns:
        At least one rotation.
    """
    allowed = max(1, min(MOST_CALLS, MOST_BYTES // max(result_bytes, 1)))
    return rotation_length * max(1, allowed // rotation_length)
