import itertools
import os
import signal

import numpy as np
import pytest

from dkpn.config import TrainConfig
from dkpn.schedule import Clock, StopRequest


def test_learning_rate_warms_up_and_falls_to_its_end():
    clock = Clock(
        TrainConfig(iterations=1000, warmup=50, learning_rate=1.0, final_learning_rate=0.1)
    )
    rates = [clock.learning_rate(iteration) for iteration in range(1000)]
    peak = int(np.argmax(rates))
    assert 45 <= peak <= 55
    assert all(low < high for low, high in itertools.pairwise(rates[: peak + 1]))
    assert all(high > low for high, low in itertools.pairwise(rates[peak:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)  # one step before the end of the cosine


def test_a_time_limit_ends_the_run_and_the_cosine():
    clock = Clock(TrainConfig(iterations=1000, minutes=1.0, learning_rate=1.0))
    clock.seconds = 30.0
    assert clock.progress(0) == 0.5
    assert not clock.finished(0)
    clock.seconds = 60.0
    assert clock.finished(0)
    assert clock.learning_rate(500) == pytest.approx(clock.settings.final_learning_rate)


def test_signals_are_counted_once_and_only_a_later_interrupt_is_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dkpn.schedule.time.monotonic", lambda: now[0])
    stop = StopRequest()
    with stop.listening():
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.after(1) == signal.SIGINT
        now[0] += 0.5
        os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C, passed on
        now[0] += 5.0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested
