"""QMP, the control language of QEMU, on a Unix socket: one JSON object a line."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

JOB = "job"  # one at a time, so one name does for all


class Monitor:
    """A connection to the monitor of a running QEMU program."""

    def __init__(self, path: Path) -> None:
        self._events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self._read()  # the greeting
            self("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __call__(self, command: str, **arguments: object) -> Any:
        """Executes a command and returns its answer; RuntimeError if it fails. In names of arguments _ stands for -."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode())
        while "return" not in (answer := self._read()):
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            self._events.append(answer)
        return answer["return"]

    def job(self, command: str, **arguments: object) -> None:
        """Runs a job to its end; one that waits to be completed is told to. RuntimeError if it fails."""
        self._events.clear()
        self(command, job_id=JOB, **arguments)
        while (status := self._event("JOB_STATUS_CHANGE")["status"]) != "concluded":
            if status == "ready":
                self("job-complete", id=JOB)
        [job] = self("query-jobs")
        self("job-dismiss", id=JOB)
        if "error" in job:
            raise RuntimeError(f"{command}: {job['error']}")

    def remove_export(self, export: str) -> None:
        """Takes an export away, and waits until it is: until then its image cannot be closed."""
        self._events.clear()
        self("block-export-del", id=export, mode="hard")
        while self._event("BLOCK_EXPORT_DELETED")["id"] != export:
            pass

    def _event(self, name: str) -> dict[str, Any]:
        """The data of the next event of this name."""
        while True:
            event = self._events.pop(0) if self._events else self._read()
            if event.get("event") == name:
                data: dict[str, Any] = event["data"]
                return data

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("the monitor's program has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
