"""The pace of a training: when it ends, and the learning rate on the way."""

import math
import time

from dkpn.config import TrainConfig


class Clock:
    """Training time, and what follows from it and the iteration: the end, and the learning rate."""

    def __init__(self, settings: TrainConfig) -> None:
        self.settings = settings
        self.seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._started = time.monotonic()

    def pause(self) -> None:
        """Stop counting."""
        self.seconds += time.monotonic() - self._started

    def progress(self, iteration: int) -> float:
        """Share of the training that is done, in [0, 1] and maybe a little more."""
        share = iteration / self.settings.iterations
        if self.settings.minutes is None:
            return share
        return max(share, self.seconds / (60.0 * self.settings.minutes))

    def finished(self, iteration: int) -> bool:
        """Whether the training is over."""
        return self.progress(iteration) >= 1.0

    def learning_rate(self, iteration: int) -> float:
        """Linear warm-up, then a cosine from 1 to ``final_learning_rate``, times the base rate."""
        settings = self.settings
        # A short run would spend itself in the warm-up of a long one.
        length = min(settings.warmup, settings.iterations // 10)
        warmup = min(1.0, (iteration + 1) / (length + 1))
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.progress(iteration))))
        final = settings.final_learning_rate
        return settings.learning_rate * warmup * (final + (1.0 - final) * cosine)
