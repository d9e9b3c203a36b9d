"""Processes that measure, from the side of the one that asks them."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from bench.environment import ROOT


class WorkerDiedError(Exception):
    """The process ended or was ended; `provider` is whose turn it was, "" if everyone's."""

    def __init__(self, reason: str, provider: str, late: bool):
        super().__init__(reason)
        self.reason = reason
        self.provider = provider
        self.late = late  # whether it was ended for taking too long


class Worker:
    """A process of `python -m bench.worker`, started when it is first asked."""

    def __init__(self, device: str, seconds: float, environment: dict[str, str] | None = None):
        self._command = [sys.executable, "-m", "bench.worker", device, str(seconds)]
        self._environment = os.environ | (environment or {})
        self._process: Any = None  # subprocess.Popen, whose pipes are there
        self._errors: Any = None
        self._buffer = b""

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Send a request and wait for the reply.

        Args:
            request: as `bench.worker` takes it.
            limit: seconds after which the process is ended.

        Returns:
            The reply.

        Raises:
            WorkerDiedError: there was no reply; the next request starts a new process.
        """
        process: Any = self._process or self._start()
        provider, deadline = "", time.monotonic() + limit
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise self._died("could not be asked", provider) from error
        while True:
            line = self._line(deadline)
            if line is None:
                self.stop()
                raise WorkerDiedError(f"took over {limit:.0f} s", provider, late=True)
            if not line:
                raise self._died("the process ended", provider)
            message = json.loads(line)
            if "progress" in message:
                provider = message["progress"]
            elif "lost" in message:
                self.stop()
                raise WorkerDiedError(message["lost"], provider, late=False)
            else:
                return message

    def _start(self) -> Any:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in stop)
        self._buffer = b""
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that it can be ended with the processes it started
        )
        return self._process

    def _line(self, deadline: float) -> bytes | None:
        """Return the next line, b"" at the end of the stream, None at the deadline."""
        assert self._process is not None
        stream = self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(stream.fileno(), 2**16)
                if not piece:
                    return b""
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, what: str, provider: str) -> WorkerDiedError:
        process = self._process
        try:
            status = process.wait(timeout=5) if process is not None else None
        except subprocess.TimeoutExpired:
            status = None
        self._errors.seek(0)
        last = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()[-1:]
        self.stop()
        said = f": {last[0][:200]}" if last else ""
        return WorkerDiedError(f"{what} with status {status}{said}", provider, late=False)

    def stop(self) -> None:
        """End the process and what it started; the next request starts a new one."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()
        self._process = None
