"""An isolated writer: a process of its own that runs one writer's events.

Parent and child talk over a socket pair. The parent sends pickles (the writer, then event and job view), the child
answers in JSON of bounded size, so that a child gone mad cannot make the parent run or store anything.

The child has a clock of its own: if the thaw does not come a second after the freeze's deadline, or the parent dies,
it aborts the writer by itself and ends.

Threads: one worker thread uses a ProcessInvoker; `kill` may come from any thread.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from cowengine.errors import FormatError
from cowengine.vss.documents import WriterMetadata
from cowengine.vss.schema import DOCUMENT_BYTES_MAX
from cowengine.vss.worker import WorkerDied
from cowengine.vss.writer import JobView, Writer

_THAW_GRACE_SECONDS = 1.0  # the coordinator's own clock comes first
_EXIT_SECONDS = 2.0
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from {0} import serve; serve(int(sys.argv[1]))"


class ProcessInvoker:
    """Runs the events of a picklable writer in a child process, started with the first event."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._killed = False

    def invoke(self, event: str, argument: Any) -> Any:
        """Run it in the child. Raises what the writer raised (as RuntimeError), or WorkerDied."""
        connection = self._connection or self._start()
        if event == "start":
            return None
        if isinstance(argument, JobView):
            argument = argument.portable()
        try:
            connection.send_bytes(pickle.dumps((event, argument)))
            return _value(event, self._answer(connection))
        except (EOFError, OSError) as error:
            raise WorkerDied(self._obituary()) from error

    def kill(self) -> None:
        """Kill the child."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Tell the child to end; kill it if it does not."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> Connection:
        pickled = _pickle_writer(self._writer)
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", _BOOT.format(__name__), str(theirs.fileno()), json.dumps(sys.path)]
        with theirs:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self._connection = Connection(ours.detach())
        if self._killed:
            self._process.kill()
        try:
            self._connection.send_bytes(pickled)
            _value("start", self._answer(self._connection))
        except (EOFError, OSError) as error:
            raise WorkerDied(self._obituary()) from error
        return self._connection

    @staticmethod
    def _answer(connection: Connection) -> dict[str, Any]:
        # an answer that is too long raises OSError and closes the connection
        answer: dict[str, Any] = json.loads(connection.recv_bytes(DOCUMENT_BYTES_MAX))
        return answer

    def _obituary(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        return f"its process was killed by signal {-code}" if code < 0 else f"its process exited with status {code}"


def _pickle_writer(writer: Writer) -> bytes:
    if type(writer).__module__ == "__main__":
        raise RuntimeError(f"isolated writer {writer.name!r} must be defined in a module that can be imported")
    try:
        return pickle.dumps(writer)
    except Exception as error:
        raise RuntimeError(f"isolated writer {writer.name!r} cannot be pickled: {error}") from error


def _value(event: str, answer: dict[str, Any]) -> Any:
    if answer["error"] is not None:
        raise RuntimeError(answer["error"])
    return WriterMetadata.from_dict(answer["value"]) if event == "identify" else answer["value"]


def serve(descriptor: int) -> None:
    """The child's life: run events until the parent hangs up. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        writer: Writer = pickle.loads(connection.recv_bytes())
    except EOFError:
        return
    except Exception as error:
        _reply(connection, None, f"the writer cannot be made in its process: {type(error).__name__}: {error}")
        return
    _reply(connection, None, None)
    owed: JobView | None = None  # the job whose abort the writer has to get, come what may
    frozen_until: float | None = None
    while True:
        try:
            event, argument = _receive(connection, frozen_until)
        except (EOFError, OSError):
            if owed is not None:
                writer.abort(owed)
            return
        owed = None if event in ("backup_shutdown", "abort") else argument or owed
        value, problem = _run(writer, event, argument)
        if event in ("freeze", "thaw", "abort"):
            frozen_until = argument.deadline + _THAW_GRACE_SECONDS if event == "freeze" and problem is None else None
        _reply(connection, value, problem)


def _receive(connection: Connection, frozen_until: float | None) -> Any:
    """The next event. Raises EOFError if the parent hung up, or left the writer frozen past `frozen_until`."""
    if frozen_until is not None and not connection.poll(max(0.0, frozen_until - time.monotonic())):
        raise EOFError
    return pickle.loads(connection.recv_bytes())


def _run(writer: Writer, event: str, argument: JobView | None) -> tuple[Any, str | None]:
    try:
        if event == "identify":
            return writer.identify().to_dict(), None
        value = getattr(writer, event)(argument)
        return (dict(value) if isinstance(value, dict) else None), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _reply(connection: Connection, value: Any, error: str | None) -> None:
    try:
        answer = json.dumps({"value": value, "error": error}, allow_nan=False)
        if len(answer) > DOCUMENT_BYTES_MAX:
            raise FormatError(f"an answer of {len(answer)} bytes: the limit is {DOCUMENT_BYTES_MAX}")
    except (TypeError, ValueError, RecursionError, FormatError) as problem:
        answer = json.dumps({"value": None, "error": f"the event returned what JSON cannot hold: {problem}"})
    with contextlib.suppress(OSError):  # the parent is gone; the next receive sees it too and aborts
        connection.send_bytes(answer.encode())
