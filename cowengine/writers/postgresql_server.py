"""One connection to a PostgreSQL server that keeps to a clock, and what such a server says of itself.

statement_timeout bounds what the server does; a server that does not answer at all is cut off by this side's clock.

Threads: one thread asks; `cut` may come from any.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cowengine.errors import WriterError, WriterTimeout

if TYPE_CHECKING:
    import psycopg

_MARGIN = 0.2  # seconds, at most: what is left of a time limit to say that it has passed


def check_driver() -> None:
    """Raise ImportError with what to do if psycopg is missing."""
    try:
        import psycopg  # noqa: F401 - only to say so if it is missing
    except ImportError as error:
        raise ImportError("PostgreSQLWriter needs psycopg: pip install 'cowengine[postgresql]'") from error


@dataclass(frozen=True)
class Cluster:
    """What a server says of its cluster. `tablespaces`: location by name, as the server has it."""

    version: int  # as server_version_num
    system_identifier: int
    in_recovery: bool
    data_directory: str
    tablespaces: dict[str, str]
    settings: dict[str, str]


class Server:
    """A connection; every call must end by the time it was last given. Raises WriterError, WriterTimeout."""

    def __init__(self, conninfo: str, until: float) -> None:
        """`until` in time.monotonic seconds."""
        import psycopg

        self._psycopg = psycopg
        self._cut = False
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._until = until
        self._connection: psycopg.Connection[Any] | None = None
        left = until - time.monotonic()
        if left <= 0:
            raise WriterTimeout("no time was left to connect to the server")
        try:
            self._connection = psycopg.connect(
                conninfo, autocommit=True, connect_timeout=max(2, min(int(left), 1 << 20)), application_name="cowengine"
            )
        except psycopg.Error as error:
            raise WriterError(f"cannot connect to PostgreSQL: {_text(error)}") from error

    def extend(self, until: float) -> None:
        """Give it another time limit."""
        self._until = until

    def ask(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of one query. Raises WriterTimeout if the time is over, WriterError for everything else."""
        left = self._until - time.monotonic()
        left -= min(_MARGIN, left / 10)
        if left <= 0:
            raise WriterTimeout("no time was left to ask the server")
        milliseconds = max(1, min(int(left * 1000), 2**31 - 1))
        timer = threading.Timer(min(left, 1e6), self.cut)
        timer.daemon = True
        timer.start()
        try:
            assert self._connection is not None
            with self._asking:
                self._connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(milliseconds)])
                cursor = self._connection.execute(query, list(parameters))
                return cursor.fetchall() if cursor.description else []
        except self._psycopg.Error as error:
            raise self._explained(error) from error
        finally:
            timer.cancel()

    def cut(self) -> None:
        """End the connection whatever it is doing; the server then ends a backup that it had begun."""
        with self._lock:
            self._cut = True
            if self._connection is None or self._connection.closed:
                return
            with (
                suppress(OSError, self._psycopg.Error),
                socket.socket(fileno=os.dup(self._connection.fileno())) as line,
            ):
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent. What is being asked is cut off first."""
        if self._asking.locked():
            self.cut()
        with self._asking, self._lock:
            if self._connection is not None:
                self._connection.close()

    def describe(self) -> Cluster:
        """Raises WriterError if the user may not know that."""
        names = ["data_directory", "fsync", "full_page_writes", "archive_mode", "log_directory"]
        rows = self.ask(
            "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),"
            " (SELECT system_identifier FROM pg_control_system())"
        )
        version, in_recovery, identifier = rows[0]
        settings = {name: str(self.ask("SELECT current_setting(%s, true)", [name])[0][0]) for name in names}
        places = self.ask(
            "SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace"
            " WHERE spcname NOT IN ('pg_default', 'pg_global')"
        )
        data_directory = settings.pop("data_directory")
        return Cluster(int(version), int(identifier), bool(in_recovery), data_directory, dict(places), settings)

    def _explained(self, error: psycopg.Error) -> WriterError:
        if isinstance(error, self._psycopg.errors.InsufficientPrivilege):
            hint = "it takes pg_checkpoint (15 and later) and pg_read_all_settings, or a superuser"
            return WriterError(f"PostgreSQL refuses this to its user: {_text(error)}; {hint}")
        if isinstance(error, self._psycopg.errors.QueryCanceled) or time.monotonic() >= self._until - 2 * _MARGIN:
            return WriterTimeout("PostgreSQL did not do it in time")
        if self._cut:
            return WriterError("the job was aborted")
        if isinstance(error, self._psycopg.OperationalError):
            return WriterError(f"the connection to PostgreSQL was lost: {_text(error)}")
        return WriterError(f"PostgreSQL reports: {_text(error)}")


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
