"""The pace of a training: when it ends or stops, and the learning rate on the way."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator

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


def bar_interval() -> float:
    """Seconds between two updates of a progress bar: in a log file each of them is a line."""
    return 0.1 if sys.stderr.isatty() else 15.0


class StopRequest:
    """Says whether the loop should end after this iteration; signals and tests set it.

    ``number`` is the signal that asked for it, 0 as long as none did.
    """

    AGAIN = 1.0  # seconds after which another Ctrl-C is meant as another one

    def __init__(self) -> None:
        self.number = 0

    @property
    def requested(self) -> bool:
        """Whether a stop has been asked for."""
        return self.number != 0

    def after(self, iteration: int) -> int:
        """The signal that asked to stop, now that ``iteration`` steps are done; 0: none."""
        return self.number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM ask for a stop.

        Another Ctrl-C interrupts at once. Another SIGTERM does nothing, nor does a Ctrl-C within
        one second: ``torchrun`` passes on what its processes have received already.
        """
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        asked = math.inf

        def ask(number: int, frame: object) -> None:
            nonlocal asked
            now = time.monotonic()
            asked = min(asked, now)
            self.number = max(self.number, number)
            if number == signal.SIGINT and now - asked > self.AGAIN:
                raise KeyboardInterrupt

        for number in usual:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)
