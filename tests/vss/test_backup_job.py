"""A backup as a job: snapshot, write, verify, and only then backup_complete; what fails leaves the target as it was."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from scripted_writers import Journal, ScriptedWriter

from cowengine.backup import list_backups, load_documents, restore, verify_backup
from cowengine.errors import (
    BackupError,
    CancelledError,
    FullBackupRequired,
    NotFoundError,
    OutOfRangeError,
    WriterError,
    WriterTimeout,
    WriterVeto,
)
from cowengine.vss import BackupComponents, Requestor, WriterMetadata, schema

LIMIT = 1.0


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def filled(store: Any, byte: bytes = b"x") -> None:
    for name in store.volumes():
        store.open_volume(name).pwrite(byte * 8192, 4096)


def test_backup_complete_comes_after_the_written_backup_was_verified(
    store: Any, journal: Journal, target: Path
) -> None:
    filled(store)
    seen: list[Any] = []

    class Truncating(ScriptedWriter):
        def backup_complete(self, job: Any) -> None:
            [found] = list_backups(str(target))
            seen.append((job.kind, found.kind, verify_backup(str(target), found.id).ok, job.snapshot_set.name))
            self._do("backup_complete", job)

    phases: list[str] = []
    writer = Truncating(journal, "w", volumes=("a",))
    backup = Requestor(store, [writer]).backup(str(target), progress=lambda done, total, phase: phases.append(phase))
    [taken] = store.snapshot_sets()
    assert seen == [("full", "full", True, taken.name)]
    assert list(dict.fromkeys(phases)) == ["backup", "verify"]
    assert (backup.kind, set(backup.volumes)) == ("full", {"a", "b", "c"})
    assert journal.events("w")[-3:] == ["post_snapshot", "backup_complete", "backup_shutdown"]
    phases_kept = [entry["phase"] for entry in taken.ledger["entries"] if entry["name"] == "w"]
    assert phases_kept[-2:] == ["backup_complete", "backup_shutdown"]


def test_the_documents_travel_in_the_backup(store: Any, journal: Journal, target: Path) -> None:
    writer = ScriptedWriter(journal, "w", volumes=("a",), returns={"post_snapshot": {"stamp": 42}})
    optional = ScriptedWriter(journal, "optional", {"freeze": "raise"}, required=False)
    backup = Requestor(store, [writer, optional]).backup(str(target))
    documents = load_documents(str(target), backup.id)
    [metadata] = [WriterMetadata.from_dict(document) for document in documents["writer_metadata"]]
    assert (metadata.writer, metadata.volumes) == ("w", ("a",))
    components = BackupComponents.from_dict(documents["backup_components"])
    assert {(record.writer, record.outcome) for record in components.writers} == {("w", "ok"), ("optional", "veto")}
    assert [record.metadata for record in components.writers if record.writer == "w"] == [{"stamp": 42}]
    assert components.snapshot_set["name"] == store.snapshot_sets()[0].name
    schema.check(documents["freeze_ledger"], "freeze-ledger")


def test_incrementals_follow_a_full_one_and_restore_to_what_was_snapshotted(
    store: Any, target: Path, tmp_path: Path
) -> None:
    requestor = Requestor(store)
    filled(store, b"1")
    requestor.backup(str(target))
    store.open_volume("b").pwrite(b"2" * 4096, 65536)
    last = requestor.backup(str(target), kind="incremental")
    expected = {name: snapshot.open().read() for name, snapshot in store.snapshot_sets()[-1].snapshots.items()}
    assert last.base is not None
    restore(str(target), last.id, str(tmp_path / "restored"))
    found = {path.name: path.read_bytes() for path in (tmp_path / "restored").iterdir() if path.is_file()}
    assert sorted(found.values()) == sorted(expected.values())


@pytest.mark.parametrize("kind", ["incremental", "differential"])
def test_a_chain_without_a_base_is_refused_before_anybody_freezes(
    store: Any, journal: Journal, target: Path, kind: str
) -> None:
    requestor = Requestor(store, [ScriptedWriter(journal, "w")])
    with pytest.raises(FullBackupRequired):
        requestor.backup(str(target), kind=kind)
    requestor.backup(str(target), chain="mine")
    with pytest.raises(FullBackupRequired, match="theirs"):
        requestor.backup(str(target), kind=kind, chain="theirs")
    with pytest.raises(FullBackupRequired, match="pipe"):
        requestor.backup(io.BytesIO(), kind=kind)
    assert journal.events("w").count("freeze") == 1
    assert len(store.snapshot_sets()) == 1


def test_a_set_that_exists_is_backed_up_without_freezing_anybody(store: Any, journal: Journal, target: Path) -> None:
    filled(store)
    requestor = Requestor(store, [ScriptedWriter(journal, "w", volumes=("a",))])
    taken = requestor.snapshot(name="earlier")
    before = len(journal.events("w"))
    backup = requestor.backup(str(target), snapshot_set=taken, volumes=["a"])
    assert tuple(backup.volumes) == ("a",)
    assert journal.events("w")[before:] == ["identify", "prepare_backup", "backup_complete", "backup_shutdown"]
    assert set(requestor.backup(str(target), snapshot_set="earlier", kind="copy").volumes) == {"a", "b", "c"}
    assert len(store.snapshot_sets()) == 1
    with pytest.raises(NotFoundError):
        requestor.backup(str(target), snapshot_set="no such set")
    with pytest.raises(NotFoundError, match="'z'"):
        requestor.backup(str(target), snapshot_set=taken, volumes=["z"])
    with pytest.raises(OutOfRangeError, match="kind"):
        requestor.backup(str(target), kind="everything")


def test_what_writers_noted_stays_with_the_set_and_goes_into_a_later_backup(
    store: Any, journal: Journal, target: Path
) -> None:
    writer = ScriptedWriter(journal, "w", volumes=("a",), returns={"thaw": {"label": "x\ny"}})
    Requestor(store, [writer]).snapshot(name="earlier")
    taken = store.get_snapshot_set("earlier")
    assert taken.ledger["writer_notes"] == {"w": {"label": "x\ny"}}
    backup = Requestor(store, [writer]).backup(str(target), snapshot_set=taken)
    [record] = load_documents(str(target), backup.id)["backup_components"]["writers"]
    assert record["metadata"] == {"label": "x\ny"}


def test_what_all_writers_note_together_is_bounded(store: Any, journal: Journal) -> None:
    talkers = [ScriptedWriter(journal, f"w{n}", returns={"thaw": {"text": "x" * 1_000_000}}) for n in range(9)]
    Requestor(store, talkers[:8]).snapshot()
    with pytest.raises(WriterError, match="all writers"):
        Requestor(store, talkers).snapshot()


def test_a_damaged_write_is_noticed_and_nothing_is_truncated(
    store: Any, journal: Journal, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes on the target rot between write and verify: no backup_complete, no backup, no set."""
    from cowengine.backup.target import NewBackup

    real = NewBackup.written

    def rot(new: NewBackup) -> Any:
        largest = max((path for path in target.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)
        return real(new)

    monkeypatch.setattr(NewBackup, "written", rot)
    filled(store)
    with pytest.raises(BackupError):
        Requestor(store, [ScriptedWriter(journal, "w")]).backup(str(target))
    assert "backup_complete" not in journal.events("w")
    assert journal.events("w")[-2:] == ["abort", "backup_shutdown"]
    assert list_backups(str(target)) == []
    assert store.snapshot_sets() == []


@pytest.mark.parametrize("moment", ["backup", "verify"])
def test_cancel_while_bytes_move_leaves_no_backup_and_no_set(
    store: Any, journal: Journal, target: Path, moment: str
) -> None:
    filled(store)
    jobs: list[Any] = []

    def progress(done: int, total: int | None, phase: str) -> None:
        if phase == moment:
            while not jobs:
                pass
            jobs[0].cancel()

    requestor = Requestor(store, [ScriptedWriter(journal, "w")])
    jobs.append(requestor.start_backup(str(target), progress=progress))
    with pytest.raises(CancelledError):
        jobs[0].wait(30)
    assert list_backups(str(target)) == []
    assert store.snapshot_sets() == []
    assert journal.events("w")[-2:] == ["abort", "backup_shutdown"]
    requestor.backup(str(target))


@pytest.mark.parametrize("isolated", [False, True], ids=["thread", "process"])
@pytest.mark.parametrize("required", [True, False], ids=["required", "optional"])
@pytest.mark.parametrize(("fault", "error"), [("raise", WriterVeto), ("hang", WriterTimeout), ("die", WriterError)])
def test_a_failure_at_backup_complete_leaves_the_verified_backup_standing(
    store: Any, journal: Journal, target: Path, fault: str, error: type[WriterError], required: bool, isolated: bool
) -> None:
    faulty = ScriptedWriter(journal, "faulty", {"backup_complete": fault}, required=required, isolated=isolated)
    fine = ScriptedWriter(journal, "fine")
    requestor = Requestor(store, [faulty, fine], freeze_limit=LIMIT, event_limit=LIMIT, abort_limit=LIMIT)
    job = requestor.start_backup(str(target))
    if required:
        with pytest.raises(error, match="backup_complete"):
            job.wait(30)
    else:
        job.wait(30)
    [backup] = list_backups(str(target))
    assert verify_backup(str(target), backup.id).ok
    assert len(store.snapshot_sets()) == 1
    assert journal.events("fine")[-2:] == ["backup_complete", "backup_shutdown"]
    assert journal.events("faulty")[-2:] == ["abort", "backup_shutdown"]
    requestor.backup(str(target), kind="incremental")


def test_a_failed_snapshot_writes_nothing(store: Any, journal: Journal, target: Path) -> None:
    with pytest.raises(WriterVeto):
        Requestor(store, [ScriptedWriter(journal, "w", {"freeze": "raise"})]).backup(str(target))
    assert not target.exists() or list_backups(str(target)) == []


def test_a_backup_to_a_pipe_truncates_nothing_because_nobody_verified_it(store: Any, journal: Journal) -> None:
    filled(store)
    pipe = io.BytesIO()
    Requestor(store, [ScriptedWriter(journal, "w")]).backup(pipe, kind="full")
    pipe.seek(0)
    assert verify_backup(pipe).ok
    assert journal.events("w")[-2:] == ["post_snapshot", "backup_shutdown"]


def test_progress_of_a_backup_reaches_one(store: Any, target: Path) -> None:
    filled(store)
    job = Requestor(store).start_backup(str(target))
    job.wait(30)
    assert (job.progress.phase, job.progress.fraction, job.state) == ("done", 1.0, "done")
