"""Real PostgreSQL servers in scratch folders; never one of the system's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

USER = "postgres"


def program(name: str) -> str:
    """A program of the newest PostgreSQL that Debian's packages have installed."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    assert found, f"PostgreSQL has no program {name}"
    return str(found[-1])


def as_user(*command: object, check: bool = True, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs as its user."""
    line = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/", timeout=seconds)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that the server's user may look into; what is mounted in it is unmounted first."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def owned(folder: Path) -> Path:
    """The folder, made if need be, as one that belongs to the server's user alone."""
    folder.mkdir(exist_ok=True)
    shutil.chown(folder, USER, USER)
    folder.chmod(0o700)
    return folder


class PostgreSQL:
    """One cluster: its data directory, and a server on it that listens on a socket in `run` only."""

    def __init__(self, data: Path, run: Path) -> None:
        self.data = data
        self.run = owned(run)
        self.pid = 0  # of the server that was started last
        self.conninfo = f"host={run} user={USER} dbname=postgres"

    def create(self, *settings: str, waldir: Path | None = None) -> PostgreSQL:
        owned(self.data)
        options = ["-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale"]
        options += [f"--waldir={waldir}"] if waldir else []
        as_user(program("initdb"), "-D", self.data, *options)
        fixed = ["listen_addresses = ''", "shared_buffers = 32MB", "max_wal_size = 256MB", "jit = off"]
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join([*fixed, *settings]) + "\n")
        return self

    def start(self, *, seconds: float = 60.0) -> PostgreSQL:
        log = self.run / "log"
        options = f"-c unix_socket_directories={self.run}"
        command = [program("pg_ctl"), "-D", self.data, "-o", options, "-l", log, "-t", int(seconds), "-w", "start"]
        done = as_user(*command, check=False, seconds=seconds + 30)
        assert done.returncode == 0, log.read_text()[-3000:] if log.exists() else done.stderr
        self.pid = int((self.data / "postmaster.pid").read_text().split()[0])
        return self

    def forget_the_one_before(self) -> None:
        """In a copy, or after a crash: this machine may still know a process of the number that was written down."""
        for path in [self.data / "postmaster.pid", *self.run.glob(".s.PGSQL.*")]:
            path.unlink(missing_ok=True)

    def stop(self, mode: str = "fast") -> None:
        as_user(program("pg_ctl"), "-D", self.data, "-m", mode, "-w", "stop", check=False)

    def processes(self) -> list[int]:
        """The server and all its children; none if it has ended by itself."""
        try:
            tasks = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except FileNotFoundError:
            return []
        return [self.pid, *map(int, tasks)]

    def kill(self) -> None:
        """All of it at once, as a crash does."""
        pids = self.processes() if self.pid else []
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline = time.monotonic() + 60
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def sql(self, query: str, database: str = "postgres") -> str:
        command = [program("psql"), "-h", self.run, "-U", USER, "-d", database, "-XAtq", "-v", "ON_ERROR_STOP=1"]
        return as_user(*command, "-c", query).stdout.strip()

    def check(self, database: str = "postgres") -> None:
        """pg_amcheck finds nothing wrong with any table or index."""
        self.sql("CREATE EXTENSION IF NOT EXISTS amcheck", database)
        command = [program("pg_amcheck"), "-h", self.run, "-U", USER, "-d", database, "--heapallindexed"]
        done = as_user(*command, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def invariant(self, database: str = "postgres") -> int:
        """pgbench's own: what its transactions moved is the same in all four tables. The number of transactions."""
        sums = self.sql(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
            database,
        ).split("|")
        assert len(set(sums)) == 1, sums
        return int(self.sql("SELECT count(*) FROM pgbench_history", database))

    @contextmanager
    def load(self, *, clients: int = 4, seconds: int = 600) -> Iterator[subprocess.Popen[bytes]]:
        """pgbench beside the block, which begins when it has done something."""
        command = [
            program("pgbench"),
            "-h",
            self.run,
            "-U",
            USER,
            "-n",
            "-c",
            clients,
            "-j",
            1,
            "-T",
            seconds,
            "postgres",
        ]
        process = subprocess.Popen(
            [str(part) for part in command], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 60
            while not self.invariant():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
