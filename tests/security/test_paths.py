"""What lies under a name that somebody else could choose: links, pipes, folders, leftovers. Nothing is followed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_child import told_in_child
from raw_images import write_image

from cowengine import CowEngineError, Store, Volume
from cowengine.backup import delete_backup, list_backups, restore, verify_backup, write_backup
from cowengine.cli.main import main
from cowengine.engine.check import check_file
from cowengine.errors import ExistsError, FormatError

SIZE = 1 << 20
TYPED = {error.__name__ for error in (CowEngineError, *CowEngineError.__subclasses__())} | {
    "ExistsError", "NotFoundError", "ReadOnlyError", "StorageError", "CorruptionError", "OutOfRangeError", "BusyError"
}  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, with what they hold."""
    files = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file() and not path.is_symlink()
    }


def is_typed(told: str) -> bool:
    """Whether a child ended with an error of cowengine, or with none."""
    return told == "nothing" or told.partition(":")[0] in TYPED


# -- a link or a pipe in the place of a file that is there -----------------------------------------------------------
def salvage(path: Path) -> None:
    Volume.salvage(path, path.with_name("salvaged"))


def attach(path: Path) -> None:
    with Store.create(path.with_name("store")) as store:
        store.attach(path, "x").close()


VERBS: dict[str, Callable[[Path], object]] = {
    "open": lambda path: Volume.open(path).close(),
    "open read-only": lambda path: Volume.open(path, read_only=True).close(),
    "check": lambda path: check_file(str(path)),
    "repair": Volume.repair,
    "salvage": salvage,
    "adopt": lambda path: Volume.adopt(path).close(),
    "adopt under another name": lambda path: Volume.adopt(path, path.with_name("adopted")).close(),
    "undo an adoption": Volume.undo_adoption,
    "attach": attach,
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path, verb: str) -> None:
    with Volume.create(tmp_path / "volume", SIZE) as volume:
        volume.pwrite(b"theirs", 0)
    write_image(tmp_path / "image", SIZE)
    before = tree(tmp_path)
    (tmp_path / "link").symlink_to("image" if "adopt" in verb else "volume")
    with pytest.raises(FormatError, match="not a regular file"):
        VERBS[verb](tmp_path / "link")
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("store")} == before
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("verb", VERBS)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, verb: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert told_in_child(lambda: VERBS[verb](tmp_path / "pipe")).startswith("FormatError: "), verb


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize("verb", ["open", "adopt", "undo an adoption", "flatten"])
def test_what_lies_in_the_place_of_an_intent_file_is_left_alone(tmp_path: Path, verb: str, kind: str) -> None:
    path, intent = tmp_path / "v", tmp_path / "v.adopting"
    (tmp_path / "victim").write_bytes(b"theirs")
    if verb in ("adopt", "undo an adoption"):
        write_image(path, SIZE)
    else:
        write_image(path, SIZE)
        Volume.adopt(path).close()
    place(intent, kind, tmp_path / "victim")

    def flatten() -> None:
        with Volume.open(path) as volume:
            volume.flatten()

    told = told_in_child(lambda: flatten() if verb == "flatten" else VERBS[verb](path))
    assert is_typed(told), told
    assert (tmp_path / "victim").read_bytes() == b"theirs"
    assert os.path.lexists(intent)


def place(path: Path, kind: str, target: Path) -> None:
    """Puts what nobody expects where a file belongs."""
    if kind == "link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


# -- new files ---------------------------------------------------------------------------------------------------------
def a_snapshot(folder: Path) -> Volume:
    volume = Volume.create(folder / "source", SIZE)
    volume.pwrite(b"data", 0)
    volume.snapshot("s")
    return volume


def cat(volume: Volume, target: Path) -> None:
    path = volume.path
    volume.close()
    if main(["snapshot", "cat", f"{path}@s", "--output", str(target)]) != 0:
        raise ExistsError("told by the exit status")


def closed_and_salvaged(volume: Volume, target: Path) -> None:
    volume.close()
    Volume.salvage(volume.path, target)


MAKERS: dict[str, Callable[[Volume, Path], object]] = {
    "create": lambda volume, target: Volume.create(target, SIZE),
    "flatten": lambda volume, target: volume.flatten(target),
    "flatten a snapshot": lambda volume, target: volume.get_snapshot("s").flatten(target),
    "export": lambda volume, target: volume.export(target),
    "export what can be read": lambda volume, target: volume.export(target, salvage=True),
    "salvage": lambda volume, target: closed_and_salvaged(volume, target),
    "store": lambda volume, target: Store.create(target),
    "snapshot cat": cat,
}


@pytest.mark.parametrize("dangling", [True, False])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_link_in_the_place_of_a_new_file_is_refused(tmp_path: Path, maker: str, dangling: bool) -> None:
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"theirs")
    (tmp_path / "target").symlink_to(victim)
    with a_snapshot(tmp_path) as volume, pytest.raises(ExistsError):
        MAKERS[maker](volume, tmp_path / "target")
    assert victim.exists() is not dangling
    assert dangling or victim.read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_lies_in_the_place_of_an_unfinished_copy_is_left_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "victim").write_bytes(b"theirs")
    place(tmp_path / "target.part", kind, tmp_path / "victim")
    a_snapshot(tmp_path).close()

    def flatten() -> None:
        with Volume.open(tmp_path / "source") as volume:
            volume.flatten(tmp_path / "target")

    for work in (flatten, lambda: Volume.salvage(tmp_path / "source", tmp_path / "target")):
        told = told_in_child(work)
        assert is_typed(told) and told != "nothing", told
        assert not (tmp_path / "target").exists() and os.path.lexists(tmp_path / "target.part")
    assert (tmp_path / "victim").read_bytes() == b"theirs"


# -- a store that somebody else made -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with a volume, a set and a document; beside it what it must not reach."""
    tmp_path = tmp_path_factory.mktemp("stores")
    with Store.create(tmp_path / "store") as store:
        with store.create_volume("x", SIZE) as volume:
            volume.pwrite(b"data", 0)
            store.snapshot(["x"], "set")
        store.put_document("plan", "one", {"a": 1})
        with store.create_volume("y", SIZE):
            pass
        store.detach("y")
    shutil.copytree(tmp_path / "store", tmp_path / "outside")
    (tmp_path / "outside" / "volumes" / "half.new").write_bytes(b"looks unfinished")
    (tmp_path / "outside" / "documents" / "half.new").write_bytes(b"looks unfinished")
    return tmp_path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "store"


def use(folder: Path) -> None:
    """All that a user may try with a store, whatever fails."""
    problems: list[CowEngineError] = []
    with Store.open(folder) as store:
        for attempt in (
            lambda: store.open_volume("x").pwrite(b"mine", 0),
            lambda: store.snapshot(["x"], "another"),
            lambda: store.get_document("plan", "one"),
            lambda: store.put_document("plan", "one", {"b": 2}),
            lambda: store.put_document("plan", "two", {"b": 2}),
            lambda: store.create_volume("new", SIZE).close(),
            lambda: store.detach("new"),
            lambda: store.delete_document("plan", "one"),
            lambda: store.snapshot_sets()[0].delete(),
            lambda: store.delete_volume("x"),
            store.check,
        ):
            try:
                attempt()
            except CowEngineError as error:
                problems.append(error)


FILES = ("store.log", "catalogue.sqlite", "catalogue.sqlite.sum", "catalogue.sqlite-wal", "catalogue.sqlite-shm",
         "volumes", "volumes/x.cow", "volumes/new.new", "volumes/new.cow", "documents", "documents/plan.one.json",
         "documents/plan.two.json.new", "detached", "detached/new.cow")  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", FILES)
def test_nothing_in_a_store_leads_out_of_it_or_is_waited_for(store: Path, name: str, kind: str) -> None:
    outside = store.with_name("outside")
    target = outside / name
    if not target.exists():
        target.write_bytes(b"theirs")
    before = tree(outside)
    if os.path.lexists(store / name):
        (store / name).rename(store.with_name("was here"))
    place(store / name, kind, target)
    told = told_in_child(lambda: use(store))
    assert is_typed(told), told
    assert tree(outside) == before


# -- a backup target that somebody else filled -----------------------------------------------------------------------
@pytest.fixture
def target(tmp_path: Path) -> Path:
    with a_snapshot(tmp_path) as volume:
        write_backup(tmp_path / "target", {"v": volume.get_snapshot("s")}, kind="full")
    shutil.copytree(tmp_path / "target", tmp_path / "outside")
    return tmp_path / "target"


def use_target(folder: Path, source: Path) -> None:
    backup = ""
    try:
        backup = list_backups(folder)[0].id
    except (CowEngineError, IndexError):
        backup = next(iter((folder.with_name("outside") / "chains" / "default").glob("[0-9a-f]*"))).name
    with Volume.open(source) as volume:
        for attempt in (
            lambda: write_backup(folder, {"v": volume.get_snapshot("s")}, kind="full"),
            lambda: verify_backup(folder, backup),
            lambda: restore(folder, backup, folder.with_name("restored")),
            lambda: delete_backup(folder, backup),
        ):
            try:
                attempt()
            except CowEngineError:
                continue


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["chains", "chain", "lock", "backup", "manifest.json", "stream"])
def test_nothing_in_a_backup_target_leads_out_of_it_or_is_waited_for(target: Path, name: str, kind: str) -> None:
    backup = list_backups(target)[0]
    chain = Path("chains") / "default"
    names = {"chains": Path("chains"), "chain": chain, "lock": chain / "lock", "backup": chain / backup.id}
    path = names.get(name, chain / backup.id / name)
    assert (target / path).exists(), sorted(tree(target))
    outside = target.with_name("outside")
    before = tree(outside)
    (target / path).rename(target.with_name("was here"))
    place(target / path, kind, outside / path)
    told = told_in_child(lambda: use_target(target, target.with_name("source")))
    assert is_typed(told), told
    assert tree(outside) == before
