"""PostgreSQLWriter: a PostgreSQL cluster whose files lie on mounted volumes.

Modes
    atomic  Every place the server writes to lies on a volume of the set, so the set is all of it at one instant: what a
            power cut would have left, from which PostgreSQL recovers by itself. Before the snapshot a checkpoint, so
            that recovery is short; nobody stands still. That nothing lies elsewhere is looked up before the snapshot
            and once more after it.
    backup  Otherwise: pg_backup_start before the snapshot, pg_backup_stop after it. The copies may then be of different
            instants; recovery needs the two labels, which the writer notes, and the WAL from the server's archive.

Threads: events of one job come from one thread, abort from any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from cowengine.errors import OutOfRangeError, WriterError
from cowengine.filesystems import START_BYTES, probe
from cowengine.names import check_path
from cowengine.vss.documents import Component, WriterMetadata
from cowengine.vss.writer import JobView, Level, Writer
from cowengine.writers.devices import offset_of_device, uuid_of_device
from cowengine.writers.postgresql_places import Place, places_of
from cowengine.writers.postgresql_server import Cluster, Server, check_driver

Mode = Literal["auto", "atomic", "backup"]
_BACKUP_FUNCTIONS = 150000  # the version that renamed them


class PostgreSQLWriter(Writer):
    """One PostgreSQL cluster as a writer. Needs psycopg (`cowengine[postgresql]`).

    `conninfo` is how to connect, as libpq takes it; the user is a superuser, or has the roles pg_checkpoint and
    pg_read_all_settings (and, for the mode "backup", EXECUTE on pg_backup_start and pg_backup_stop). The server runs on
    this machine, and this process may read its data directory.

    `volumes` maps each volume of the store that the cluster lies on to where it is mounted. One name alone stands for
    the file system of the data directory.

    `mode`: "auto" is "atomic" if everything lies on these volumes, else "backup"; "atomic" refuses a cluster of which
    something lies elsewhere. "backup" refuses a server that does not archive its WAL.
    """

    def __init__(
        self,
        conninfo: str = "",
        volumes: Mapping[str, str | os.PathLike[str]] | Sequence[str] = (),
        *,
        mode: Mode = "auto",
        name: str = "postgresql",
        level: Level = "back-end",
        required: bool = True,
        freeze_limit: float = 60.0,
    ) -> None:
        check_driver()
        if mode not in get_args(Mode):
            raise OutOfRangeError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r:.40}")
        self.conninfo = conninfo
        self.volumes = _mounts(volumes)
        self.mode = mode
        self.name = name
        self.level = level
        self.required = required
        self.freeze_limit = freeze_limit
        self._lock = threading.Lock()
        self._servers: dict[str, Server] = {}  # by job, while its connection is open
        self._in_backup: set[str] = set()  # jobs whose connection is held open

    def identify(self) -> WriterMetadata:
        """One component, the cluster."""
        component = Component("cluster", tuple(self.volumes), properties={"format": "postgresql"})
        return WriterMetadata(self.name, (component,))

    def prepare_snapshot(self, job: JobView) -> Mapping[str, Any]:
        """Find out where the cluster lies, and checkpoint it; in the mode "backup" begin a backup.

        Raises WriterError (no connection, no right to, a standby, something lies elsewhere, no WAL archive),
        WriterTimeout, NotFoundError, StorageError.
        """
        with self._connected(job, "prepare_snapshot") as server:
            cluster = server.describe()
            if cluster.in_recovery:
                raise WriterError("the server is a standby (in recovery): take the snapshot of its primary")
            places = places_of(cluster, self.volumes)
            elsewhere = [place for place in places if place.volume not in job.volumes]
            notes = {
                "server_version": cluster.version,
                "system_identifier": str(cluster.system_identifier),
                "places": {place.role: place.to_dict() for place in places},
            }
            if self.mode == "backup" or (self.mode == "auto" and elsewhere):
                return {**notes, "mode": "backup", "start_lsn": self._begin_backup(server, cluster, job, elsewhere)}
            _check_atomic(cluster, elsewhere)
            server.ask("CHECKPOINT")
        return {**notes, "mode": "atomic"}

    def post_snapshot(self, job: JobView) -> Mapping[str, Any]:
        """In the mode "backup" end it, and note the labels; else look once more whether all was in the set.

        Raises WriterError if it was not, or the connection was lost; WriterTimeout (the WAL could not be archived in
        time).
        """
        has_begun = job.id in self._in_backup
        self._in_backup.discard(job.id)
        with self._connected(job, "post_snapshot") as server:
            if has_begun:
                return self._end_backup(server)
            cluster = server.describe()
            places = places_of(cluster, self.volumes)
            _check_atomic(cluster, [place for place in places if place.volume not in job.volumes])
            return {"verified_volumes": _verified(places, job)}

    def abort(self, job: JobView) -> None:
        """Cut the connection; a backup that was begun ends with it."""
        self._in_backup.discard(job.id)
        with self._lock:
            server = self._servers.pop(job.id, None)
        if server is not None:
            server.close()

    def backup_shutdown(self, job: JobView) -> None:
        """Let go of the connection."""
        self.abort(job)

    def _begin_backup(self, server: Server, cluster: Cluster, job: JobView, elsewhere: Sequence[Place]) -> str:
        if cluster.settings["archive_mode"] not in ("on", "always"):
            where = f"{_listed(elsewhere)}, so the set is not all of the cluster at one instant. " if elsewhere else ""
            raise WriterError(
                f"{where}A backup mode copy needs the WAL that is written meanwhile, and archive_mode is off: "
                "set up a WAL archive, or put the whole cluster on volumes of the set"
            )
        function = "pg_backup_start(%s, true)"
        if cluster.version < _BACKUP_FUNCTIONS:
            function = "pg_start_backup(%s, true, false)"
        lsn = str(server.ask(f"SELECT {function}", [f"cowengine {job.set_name}"[:200]])[0][0])
        self._in_backup.add(job.id)  # it lasts as long as its connection
        return lsn

    def _end_backup(self, server: Server) -> dict[str, Any]:
        version = int(server.ask("SELECT current_setting('server_version_num')::int")[0][0])
        function = "pg_backup_stop(true)" if version >= _BACKUP_FUNCTIONS else "pg_stop_backup(false, true)"
        lsn, label, tablespaces = server.ask(f"SELECT lsn::text, labelfile, spcmapfile FROM {function}")[0]
        return {"stop_lsn": lsn, "backup_label": label, "tablespace_map": tablespaces or ""}

    @contextmanager
    def _connected(self, job: JobView, phase: str) -> Iterator[Server]:
        """The connection of this job, closed afterwards unless a backup needs it. Names the writer in errors."""
        server: Server | None = None
        try:
            with self._lock:
                server = self._servers.get(job.id)
            if server is None:
                server = Server(self.conninfo, job.deadline)
                with self._lock:
                    self._servers[job.id] = server
            server.extend(job.deadline)
            yield server
        except WriterError as error:
            error.writer, error.phase = error.writer or self.name, error.phase or phase
            raise
        finally:
            if job.id not in self._in_backup:
                with self._lock:
                    self._servers.pop(job.id, None)
                if server is not None:
                    server.close()


def _check_atomic(cluster: Cluster, elsewhere: Sequence[Place]) -> None:
    if elsewhere:
        raise WriterError(
            f"{_listed(elsewhere)}: the set would not be all of the cluster at one instant. Move it there, name its "
            "volume, or use the backup mode"
        )
    for name in ("fsync", "full_page_writes"):
        if cluster.settings[name] != "on":
            raise WriterError(f"{name} is off: what a power cut leaves of this cluster may be beyond recovery")


def _listed(places: Sequence[Place]) -> str:
    shown = [f"the {place.role} lies on {place.mount.point}" for place in places[:5]]
    return f"{', '.join(shown)}, which is no volume of the set"


def _verified(places: Sequence[Place], job: JobView) -> list[str]:
    """Volumes whose snapshot has the file system that is mounted. Raises WriterError if it has not.

    What cannot be looked at (no right to, the device mapper, a type that is not known) is neither.
    """
    snapshots = getattr(job.snapshot_set, "snapshots", {})
    verified = set()
    for place in places:
        source = place.mount.source
        mounted, offset = uuid_of_device(source), offset_of_device(source)
        if place.volume is None or place.volume not in snapshots or mounted is None or offset is None:
            continue
        if _uuid_in(snapshots[place.volume], offset) != mounted:
            raise WriterError(f"what is mounted at {place.mount.point} is not volume {place.volume!r} of the set")
        verified.add(place.volume)
    return sorted(verified)


def _uuid_in(snapshot: Any, start: int) -> bytes | None:
    """The id of the file system that begins at a byte of a snapshot."""
    if start >= snapshot.size:
        return None
    return probe(bytes(snapshot.pread(min(START_BYTES, snapshot.size - start), start))).uuid or None


def _mounts(volumes: Mapping[str, str | os.PathLike[str]] | Sequence[str]) -> dict[str, str | None]:
    if isinstance(volumes, str | bytes):
        raise OutOfRangeError("volumes must be a mapping or a list of names, not one string")
    if isinstance(volumes, Mapping):
        return {name: os.path.abspath(check_path(point)) for name, point in volumes.items()}
    if len(volumes) > 1:
        raise OutOfRangeError("say where each volume is mounted: volumes={'data': '/mnt/data', 'wal': '/mnt/wal'}")
    return dict.fromkeys(volumes)


def writers_of_argument(store: Any, argument: str) -> list[Writer]:
    """`--writer "postgresql=VOLUME:MOUNT_POINT[,VOLUME:MOUNT_POINT...] [CONNINFO]"`, or one VOLUME alone.

    Entry point "postgresql" of cowengine.configured_writers.
    """
    places, _, conninfo = argument.strip().partition(" ")
    if ":/" not in places:
        return [PostgreSQLWriter(conninfo, [places] if places else [])]
    pairs = [place.partition(":/") for place in places.split(",")]
    if not all(volume and separator for volume, separator, _ in pairs):
        raise OutOfRangeError(f"{places!r} must be VOLUME:MOUNT_POINT, or several with a comma between")
    return [PostgreSQLWriter(conninfo, {volume: "/" + point for volume, _, point in pairs})]
