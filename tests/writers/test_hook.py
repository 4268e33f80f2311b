"""HookWriter: real programs in a real folder, alone and in the jobs of a requestor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cowengine.backup import load_documents
from cowengine.errors import BusyError, NotFoundError, OutOfRangeError, WriterError, WriterVeto
from cowengine.vss import JobView, Requestor, load_writers
from cowengine.writers import HookWriter
from cowengine.writers.hook import writers_of_argument
from cowengine.writers.script import run_script

MakeJob = Callable[..., JobView]


class Folder:
    """A folder of hook programs that write down in `journal` how they were called."""

    def __init__(self, path: Path) -> None:
        self.path = path / "hook.d"
        self.path.mkdir(mode=0o755)
        self.journal = path / "journal"
        self.journal.touch()

    def add(self, name: str, then: str = "", mode: int = 0o755) -> Path:
        program = self.path / name
        program.write_text(f'#!/bin/sh\necho "{name} $1" >>"{self.journal}"\n{then}\n')
        program.chmod(mode)
        return program

    def calls(self) -> list[str]:
        return self.journal.read_text().splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def runs(pid: str) -> bool:
    """Whether there is such a process; one whose parent is gone may stay a zombie until init looks after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def begin(writer: HookWriter, job: JobView) -> None:
    writer.prepare_backup(job)
    writer.prepare_snapshot(job)


def test_programs_freeze_in_order_of_name_and_thaw_backwards(folder: Folder, job: MakeJob) -> None:
    for name in ("20-mail", "10-web", "30-database"):
        folder.add(name)
    writer = HookWriter(folder.path)
    begin(writer, job())
    writer.freeze(job())
    writer.thaw(job())
    frozen = ["10-web freeze", "20-mail freeze", "30-database freeze"]
    assert folder.calls() == [*frozen, "30-database thaw", "20-mail thaw", "10-web thaw"]


def test_what_editors_and_packagers_leave_is_passed_over(folder: Folder, job: MakeJob) -> None:
    for name in ("10-web~", "10-web.rpmsave", "10-web.dpkg-old", "10-web.bak", ".hidden", "10-web.sample"):
        folder.add(name)
    folder.add("README", mode=0o644)
    (folder.path / "subfolder").mkdir()
    writer = HookWriter(folder.path)
    begin(writer, job())
    assert writer.freeze(job()) == {"freeze": []}


def test_a_refusal_is_a_veto_and_what_was_begun_is_thawed(folder: Folder, job: MakeJob) -> None:
    folder.add("10-web")
    folder.add("20-mail", '[ "$1" = thaw ] || { echo "mail is indexing" >&2; exit 3; }')
    folder.add("30-database")
    writer = HookWriter(folder.path)
    begin(writer, job())
    with pytest.raises(WriterError, match=r"20-mail ended with status 3, saying: mail is indexing"):
        writer.freeze(job())
    assert folder.calls() == ["10-web freeze", "20-mail freeze", "20-mail thaw", "10-web thaw"]
    writer.abort(job())
    writer.abort(job())
    assert len(folder.calls()) == 4


def test_a_program_that_hangs_is_killed_with_its_children(folder: Folder, job: MakeJob, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    folder.add("10-stuck", f'[ "$1" = thaw ] && exit\ntrap "" TERM\nsleep 100 & echo $$ $! >"{pids}"\nsleep 100')
    writer = HookWriter(folder.path, script_limit=4.0)
    begin(writer, job())
    began = time.monotonic()
    with pytest.raises(WriterError, match=r"10-stuck took longer than 4 s and was killed"):
        writer.freeze(job())
    assert time.monotonic() - began < 60
    assert folder.calls() == ["10-stuck freeze", "10-stuck thaw"]
    deadline = time.monotonic() + 60
    while any(runs(pid) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_together_get_half_of_the_freeze_limit(folder: Folder, job: MakeJob) -> None:
    for number in range(5):
        folder.add(f"{number}-slow", '[ "$1" = thaw ] || sleep 1')
    writer = HookWriter(folder.path)
    begin(writer, job())
    with pytest.raises(WriterError, match=r"raise freeze_limit|took longer"):
        writer.freeze(job(seconds=7.0))
    begun = [call.removesuffix(" freeze") for call in folder.calls() if call.endswith(" freeze")]
    thawed = [call.removesuffix(" thaw") for call in folder.calls()[len(begun) :]][::-1]
    assert 1 <= len(begun) <= len(thawed) < 5
    assert thawed[: len(begun)] == begun
    assert len(thawed) <= len(begun) + 1  # the last may have been killed before it wrote anything


def test_a_failed_thaw_is_reported_and_the_others_are_thawed(folder: Folder, job: MakeJob) -> None:
    folder.add("10-web")
    folder.add("20-mail", '[ "$1" = freeze ]')
    writer = HookWriter(folder.path)
    begin(writer, job())
    writer.freeze(job())
    with pytest.raises(WriterError, match="20-mail ended with status 1"):
        writer.thaw(job())
    assert folder.calls()[2:] == ["20-mail thaw", "10-web thaw"]


def test_output_is_kept_within_bounds(folder: Folder, job: MakeJob) -> None:
    folder.add("10-talks", "head -c 3000000 /dev/zero | tr '\\0' x; echo the end")
    writer = HookWriter(folder.path)
    begin(writer, job())
    [said] = writer.freeze(job())["freeze"]
    assert said["output_bytes"] == 3000008
    assert len(said["output"]) == 4096
    assert said["output"].endswith("xthe end\n")
    writer.thaw(job())


def test_what_goes_on_in_the_background_is_not_waited_for(folder: Folder, job: MakeJob, tmp_path: Path) -> None:
    """A program may leave a session behind that holds a lock until thaw."""
    folder.add("10-lock", f'[ "$1" = thaw ] && exit\nsleep 100 & echo $! >"{tmp_path}/pid"')
    writer = HookWriter(folder.path)
    begin(writer, job())
    began = time.monotonic()
    writer.freeze(job())
    assert time.monotonic() - began < 90
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    writer.thaw(job())


def test_programs_see_the_job_and_nothing_of_this_process(folder: Folder, job: MakeJob, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    folder.add("10-env", f'env >"{seen}"; ls -l /proc/self/fd >>"{seen}"; pwd >>"{seen}"; cat')
    leaky = os.open(tmp_path / "journal", os.O_RDONLY)
    os.set_inheritable(leaky, True)
    writer = HookWriter(folder.path)
    begin(writer, job())
    writer.freeze(job(volumes=("data", "wal")))
    os.close(leaky)
    text = seen.read_text()
    assert "COWENGINE_JOB=job-1\n" in text
    assert "COWENGINE_KIND=snapshot\n" in text
    assert "COWENGINE_SET=monday\n" in text
    assert "COWENGINE_VOLUMES=data\nwal\n" in text
    assert "journal" not in text
    assert text.endswith("\n/\n")
    writer.thaw(job())


@pytest.mark.parametrize("where", ["program", "folder", "above", "linked"])
def test_what_others_could_change_is_refused(folder: Folder, job: MakeJob, tmp_path: Path, where: str) -> None:
    program = folder.add("10-web")
    if where == "linked":
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        program.rename(elsewhere / "web")
        program.symlink_to(elsewhere / "web")
        elsewhere.chmod(0o777)
    else:
        {"program": program, "folder": folder.path, "above": tmp_path}[where].chmod(0o777)
    writer = HookWriter(folder.path)
    with pytest.raises(WriterError, match="others"):
        begin(writer, job())


@pytest.mark.privileged()
def test_what_belongs_to_another_user_is_refused(folder: Folder, job: MakeJob) -> None:
    os.chown(folder.add("10-web"), 12345, 0)
    with pytest.raises(WriterError, match="belongs to user 12345"):
        begin(HookWriter(folder.path), job())


def test_bad_arguments_say_what_is_wrong(folder: Folder, job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(OutOfRangeError, match="not one string"):
        HookWriter(folder.path, "data")
    for limit in (0, -1, float("inf"), float("nan")):
        with pytest.raises(OutOfRangeError, match="script_limit"):
            HookWriter(folder.path, script_limit=limit)
    with pytest.raises(NotFoundError):
        begin(HookWriter(tmp_path / "none"), job())
    (tmp_path / "file").touch(0o755)
    with pytest.raises(OutOfRangeError, match="no folder"):
        begin(HookWriter(tmp_path / "file"), job())
    (folder.path / "10-no-program").write_bytes(b"\0\1\2")
    (folder.path / "10-no-program").chmod(0o755)
    writer = HookWriter(folder.path)
    begin(writer, job())
    with pytest.raises(WriterError, match="names no interpreter"):
        writer.freeze(job())


def test_one_folder_serves_one_job_at_a_time(folder: Folder, job: MakeJob) -> None:
    folder.add("10-web")
    first, second = HookWriter(folder.path), HookWriter(folder.path)
    begin(first, job())
    begin(second, job(name="job-2"))
    first.freeze(job())
    with pytest.raises(BusyError):
        second.freeze(job(name="job-2"))
    second.abort(job(name="job-2"))
    assert folder.calls() == ["10-web freeze"]
    first.thaw(job())
    second.freeze(job(name="job-2"))
    second.thaw(job(name="job-2"))


# ---- with a requestor ----------------------------------------------------------------------------------------------


def test_in_a_job_it_freezes_around_the_set_and_is_remembered(folder: Folder, store: Any, tmp_path: Path) -> None:
    folder.add("10-web", "echo said $1")
    requestor = Requestor(store, [HookWriter(folder.path, ("data",))])
    backup = requestor.backup(tmp_path / "backups", volumes=["data"])
    assert folder.calls() == ["10-web freeze", "10-web thaw"]
    [record] = load_documents(str(tmp_path / "backups"), backup.id)["backup_components"]["writers"]
    assert record["metadata"]["programs"] == ["10-web"]
    assert record["metadata"]["freeze"][0]["output"] == "said freeze\n"
    assert record["metadata"]["thaw"][0]["output"] == "said thaw\n"
    assert str(tmp_path) not in str(record)


def test_in_a_job_a_refusal_leaves_no_set(folder: Folder, store: Any) -> None:
    folder.add("10-web", '[ "$1" = thaw ] || { echo busy; exit 1; }')
    with pytest.raises(WriterVeto, match="10-web ended with status 1, saying: busy"):
        Requestor(store, [HookWriter(folder.path)]).snapshot()
    assert store.snapshot_sets() == []
    assert folder.calls() == ["10-web freeze", "10-web thaw"]


KILLED = """
import sys, time
from cowengine import Provider, Requestor, Store
from cowengine.vss import EngineProvider
from cowengine.writers import HookWriter

class Slow(EngineProvider):
    def commit(self, job):
        print("frozen", flush=True)
        time.sleep(100)

store = Store.create(sys.argv[1])
store.create_volume("data", 1 << 20)
Requestor(store, [HookWriter(sys.argv[2], freeze_limit=float(sys.argv[3]))], Slow(store), hold_limit=90).snapshot()
"""


@pytest.mark.parametrize("isolated_process_dies", [False, True], ids=["requestor", "requestor-and-writer"])
def test_programs_are_thawed_when_the_requestor_is_killed(
    folder: Folder, tmp_path: Path, isolated_process_dies: bool
) -> None:
    """By the writer's own process; if that is killed alone, by the requestor, through a new one."""
    folder.add("10-web")
    command = [sys.executable, "-P", "-c", KILLED, str(tmp_path / "killed"), str(folder.path)]
    command.append("5" if isolated_process_dies else "60")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        if isolated_process_dies:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            tasks = Path(f"/proc/{process.pid}/task")
            children += [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
            for pid in set(children):
                os.kill(int(pid), signal.SIGKILL)
            process.send_signal(signal.SIGINT)
        else:
            process.kill()
    deadline = time.monotonic() + 60
    while "10-web thaw" not in folder.calls() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert folder.calls()[0] == "10-web freeze"
    assert set(folder.calls()[1:]) == {"10-web thaw"}


# ---- from the command line -----------------------------------------------------------------------------------------


def test_the_text_of_the_command_line_names_the_folder(folder: Folder, store: Any) -> None:
    [writer] = writers_of_argument(store, str(folder.path))
    assert isinstance(writer, HookWriter)
    assert writer.name == "hook:hook.d"
    assert writer.directory == str(folder.path)


def test_it_is_offered_with_an_argument(folder: Folder, store: Any) -> None:
    [writer] = load_writers(f"hook={folder.path}", store)
    assert writer.name == "hook:hook.d"
    with pytest.raises(NotFoundError, match="hook=ARGUMENT"):
        load_writers("hook", store)


def test_a_script_that_ends_while_it_is_read_loses_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nprintf '%s' \"$1\" | dd bs=1 2>/dev/null\nexit 4\n")
    script.chmod(0o755)
    run = run_script(str(script), "a" * 500, os.environ, 30.0, 1000)
    assert (run.status, run.output, run.succeeded, run.timed_out) == (4, "a" * 500, False, False)
