"""What clients should not send, and clients that misbehave: a clear error, and nobody else notices."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cowengine
from cowengine import Store, connect
from cowengine.control import ControlServer, protocol
from cowengine.control import server as server_module
from cowengine.control.sockets import control_path
from cowengine.nbd.sockets import connect_unix

MIB = 1 << 20
Serve = Callable[[str], "subprocess.Popen[str]"]


class Raw:
    """A connection by hand."""

    def __init__(self, path: str) -> None:
        self.socket = connect_unix(path, 30.0)
        self._file = self.socket.makefile("rb")

    def send(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def receive(self) -> Any:
        line = self._file.readline()
        return json.loads(line) if line else None

    def call(self, method: str, **params: Any) -> Any:
        self.send(json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode())
        return self.receive()

    def hello(self) -> Any:
        return self.call("hello", versions=[1], client="test")["result"]

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextmanager
def raw(server: ControlServer, *, greet: bool = True) -> Iterator[Raw]:
    connection = Raw(server.path)
    try:
        if greet:
            connection.hello()
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"garbage", protocol.PARSE_ERROR),
        (b"\xff\xfe\x00", protocol.PARSE_ERROR),
        (b"[" * 200_000, protocol.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"method":"store.volumes","params":{"x":' + b"[" * 100_000, protocol.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"store.volumes"}', protocol.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":' + b"9" * 10_000 + b',"method":"store.volumes"}', protocol.PARSE_ERROR),
        (b"[]", protocol.INVALID_REQUEST),
        (b"7", protocol.INVALID_REQUEST),
        (b'{"id":1,"method":"store.volumes"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":{},"method":"store.volumes"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"store.volumes","params":[]}', protocol.INVALID_PARAMS),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_request(server: ControlServer, line: bytes, code: int) -> None:
    with raw(server) as client:
        client.send(line)
        assert client.receive()["error"]["code"] == code
        if code == protocol.PARSE_ERROR:
            assert client.receive() is None
        else:
            assert client.call("store.volumes")["result"] == []


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("store.close", {}, protocol.METHOD_NOT_FOUND),
        ("__class__", {}, protocol.METHOD_NOT_FOUND),
        ("hello", {"versions": [1], "client": "again"}, protocol.METHOD_NOT_FOUND),
        ("store.volumes", {"more": 1}, protocol.INVALID_PARAMS),
        ("store.create_volume", {"name": "a"}, protocol.INVALID_PARAMS),
        ("store.create_volume", {"name": "a", "size": "1M"}, protocol.INVALID_PARAMS),
        ("store.create_volume", {"name": "a", "size": True}, protocol.INVALID_PARAMS),
        ("store.create_volume", {"name": "a", "size": 1.5}, protocol.INVALID_PARAMS),
        ("store.create_volume", {"name": ["a"], "size": 4096}, protocol.INVALID_PARAMS),
        ("volume.info", {"volume": "a"}, protocol.INVALID_PARAMS),
        ("volume.info", {"volume": {"name": "a", "path": "/etc"}}, protocol.INVALID_PARAMS),
        ("volume.pwrite", {"volume": {"name": "a"}, "data": "ä", "offset": 0}, protocol.INVALID_PARAMS),
        ("snapshot.retain", {"volume": {"name": "a"}, "snapshot": 1, "until": "soon"}, protocol.INVALID_PARAMS),
        ("set.delete", {"set": {"id": "x"}}, protocol.INVALID_PARAMS),
        ("store.snapshot", {"volumes": "a", "name": "b"}, protocol.INVALID_PARAMS),
    ],
)
def test_wrong_calls(server: ControlServer, method: str, params: Any, code: int) -> None:
    with raw(server) as client:
        answer = client.call(method, **params)
        assert answer["error"]["code"] == code, answer
        assert answer["id"] == 7


@pytest.mark.parametrize(
    ("method", "params", "kind", "number"),
    [
        ("volume.info", {"volume": {"name": "none"}}, "NotFoundError", 2),
        ("volume.info", {"volume": {"name": "../../etc"}}, "OutOfRangeError", 22),
        ("volume.info", {"volume": {"name": "a", "id": "0" * 36}}, "NotFoundError", 2),
        ("volume.info", {"volume": {"name": "a", "head": "none"}}, "ClosedError", 9),
        ("volume.pread", {"volume": {"name": "a"}, "length": 1 << 40, "offset": 0}, "OutOfRangeError", 22),
        ("volume.pread", {"volume": {"name": "a"}, "length": 1, "offset": 1 << 70}, "OutOfRangeError", 22),
        ("volume.snapshots", {"volume": {"name": "a"}, "start": -1, "max_results": 1}, "OutOfRangeError", 22),
        ("snapshot.delete", {"volume": {"name": "a"}, "snapshot": 77}, "NotFoundError", 2),
        ("pending.commit", {"pending": 77}, "ClosedError", 9),
        ("store.create_volume", {"name": "a", "size": 4096}, "ExistsError", 17),
        ("store.put_document", {"kind": "a", "id": "../x", "document": {}}, "OutOfRangeError", 22),
    ],
)
def test_refused_calls(server: ControlServer, method: str, params: Any, kind: str, number: int) -> None:
    server.store.create_volume("a", MIB).close()
    with raw(server) as client:
        error = client.call(method, **params)["error"]
        assert (error["data"]["type"], error["data"]["errno"]) == (kind, number), error
        assert error["code"] == getattr(cowengine, kind).code


def test_a_line_that_is_too_long(server: ControlServer) -> None:
    with raw(server) as client:
        with pytest.raises(OSError):
            for _ in range(protocol.LINE_BYTES_MAX // MIB + 64):
                client.socket.sendall(b"x" * MIB)
        client.socket.settimeout(30)
    with connect(server.store.path) as store:
        assert store.volumes() == []


def test_a_long_line_that_is_allowed(remote: Store) -> None:
    document = {"text": "x" * (15 * MIB)}
    remote.put_document("notes", "long", document)
    assert remote.get_document("notes", "long") == document
    with pytest.raises(cowengine.OutOfRangeError):
        remote.put_document("notes", "longer", {"text": "x" * (17 * MIB)})


def test_few_long_lines_are_there_at_once(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "long_lines", threading.BoundedSemaphore(1))
    with raw(server) as slow, connect(server.store.path) as store:
        slow.socket.sendall(b" " * 2 * MIB)
        _wait(lambda: not _acquired(server.long_lines))
        store.put_document("notes", "short", {})
        done = threading.Event()

        def put() -> None:
            store.put_document("notes", "long", {"text": "x" * 2 * MIB})
            done.set()

        thread = threading.Thread(target=put)
        thread.start()
        assert not done.wait(0.2)
        slow.send(b"")
        thread.join()
        assert done.is_set()
    _wait(lambda: _acquired(server.long_lines))


def _acquired(semaphore: threading.Semaphore) -> bool:
    free = semaphore.acquire(blocking=False)
    if free:
        semaphore.release()
    return free


def test_hello_comes_first_and_agrees_on_a_version(server: ControlServer) -> None:
    with raw(server, greet=False) as client:
        assert client.call("store.volumes")["error"]["code"] == protocol.INVALID_REQUEST
        assert client.receive() is None
    with raw(server, greet=False) as client:
        error = client.call("hello", versions=[99], client="of the future")["error"]
        assert error["data"]["type"] == "UnsupportedVersionError"
        assert "of the future" in error["message"]
    with raw(server, greet=False) as client:
        error = client.call("hello", versions=[1], client="test", session="guessed")["error"]
        assert error["data"]["type"] == "ClosedError"


def test_a_client_of_another_version_is_told(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PROTOCOL_VERSIONS", (1,))
    from cowengine.control import client

    monkeypatch.setattr(client.protocol, "PROTOCOL_VERSIONS", (1,))
    monkeypatch.setattr(server_module.protocol, "PROTOCOL_VERSIONS", (1,))
    with raw(server, greet=False) as other:
        assert other.call("hello", versions=[2, 3], client="x")["error"]["data"]["type"] == "UnsupportedVersionError"


def test_errors_keep_their_type_and_fields(remote: Store) -> None:
    volume = remote.create_volume("a", MIB)
    volume.snapshot("one")
    with pytest.raises(cowengine.ExistsError) as exists:
        volume.snapshot("one")
    assert exists.value.errno == 17
    assert exists.value.code == cowengine.ExistsError.code
    with pytest.raises(cowengine.NotFoundError) as missing:
        volume.get_snapshot("two")
    assert missing.value.filename == volume.path
    with pytest.raises(cowengine.FullBackupRequired):
        volume.changed_extents("00000000-0000-0000-0000-000000000000/5/0000000000000000")
    with pytest.raises(cowengine.OutOfRangeError):
        volume.snapshot("bad\0name")
    with pytest.raises(cowengine.OutOfRangeError):
        volume.snapshot("one more", metadata={"x": object()})
    with pytest.raises(cowengine.OutOfRangeError):
        volume.get_snapshot(1.5)  # type: ignore[arg-type]


def test_a_client_that_never_reads_holds_up_nobody(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SEND_SECONDS", 0.5)
    with connect(server.store.path) as store:
        store.create_volume("a", 8 * MIB)
        with raw(server) as deaf:
            request = {"volume": {"name": "a"}, "length": 4 * MIB, "offset": 0}
            for _ in range(8):
                line = {"jsonrpc": "2.0", "id": 1, "method": "volume.pread", "params": request}
                deaf.send(json.dumps(line).encode())
            assert store.snapshot(["a"], "meanwhile").name == "meanwhile"
            _wait(lambda: len(server._clients) <= 2)  # it was given up; the client above has two connections


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_that_come_while_one_runs_are_answered_in_their_turn(server: ControlServer) -> None:
    volume = server.store.create_volume("a", 4 * MIB)
    volume.pwrite(os.urandom(4 * MIB), 0)
    volume.snapshot("one")
    volume.close()
    with raw(server) as client:
        about = {"volume": {"name": "a"}, "rate": MIB, "progress": True}
        lines = [
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": "volume.verify", "params": about}).encode(),
            b'{"jsonrpc":"2.0","id":2,"method":"store.volumes"}',
            b'{"jsonrpc":"2.0","id":3}',
            b'{"jsonrpc":"2.0","id":4,"method":"store.volumes"}',
        ]
        client.send(b"\n".join(lines))
        answers = []
        while len(answers) < 4:
            message = client.receive()
            if message.get("method") != "progress":
                answers.append(message)
        assert answers[0]["result"]["counts"]["blocks"] == 1024  # to its end
        assert [answer["id"] for answer in answers] == [1, 2, None, 4]
        assert answers[1]["result"] == answers[3]["result"] == ["a"]


def test_a_client_for_whom_there_is_no_thread_is_turned_away(
    server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = threading.Thread.start
    refused: list[str] = []

    def start(thread: threading.Thread) -> None:
        if thread.name == "cowengine-control-client" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        whole(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with raw(server, greet=False) as client:
        assert client.receive() is None
    assert refused
    assert not server._clients
    with connect(server.store.path) as store:
        assert store.volumes() == []


def test_hundreds_of_clients(server: ControlServer) -> None:
    server.store.create_volume("a", MIB).close()
    clients: list[Raw] = []
    try:
        for _ in range(server_module.CLIENTS_MAX):
            clients.append(Raw(server.path))
            clients[-1].hello()
        with pytest.raises(cowengine.BusyError, match="256 connections"):
            connect(server.store.path)
        clients.pop().close()
        _wait(lambda: len(server._clients) < server_module.CLIENTS_MAX)
        answers = [client.call("store.volumes")["result"] for client in clients]
        assert answers == [["a"]] * len(clients)
    finally:
        for client in clients:
            client.close()


def test_what_a_client_had_is_given_up_when_it_is_killed(folder: str, serve: Serve) -> None:
    with Store.create(folder) as store:
        for name in ("a", "b"):
            store.create_volume(name, MIB)
    serve(folder)
    program = (
        "import sys, cowengine; store = cowengine.connect(sys.argv[1]); volume = store.open_volume('a');"
        "clone = volume.snapshot('one').clone('trial'); pending = store.prepare_set(['b'], 'set');"
        "print('ready', flush=True); sys.stdin.read()"
    )
    client = subprocess.Popen(
        [sys.executable, "-P", "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    with connect(folder) as other:
        with pytest.raises(cowengine.BusyError, match="close it first"):
            other.delete_volume("a")
        with pytest.raises(cowengine.BusyError, match="in use"):
            other.delete_volume("b")
        with pytest.raises(cowengine.ExistsError):
            other.snapshot(["b"], "set")
        client.kill()
        client.communicate()
        _wait(lambda: not _is_busy(other, "b"))
        assert other.snapshot(["a"], "set").volumes == ["a"]
        with other.open_volume("a") as volume:
            volume.delete_head("trial")
            volume.get_snapshot("one").delete()
        other.get_snapshot_set("set").delete()
        other.delete_volume("a")
        assert other.volumes() == []


def _is_busy(store: Store, name: str) -> bool:
    try:
        store.delete_volume(name)
    except cowengine.BusyError:
        return True
    return False


def test_a_long_call_ends_when_its_client_is_killed(folder: str, serve: Serve) -> None:
    with Store.create(folder) as store, store.create_volume("a", 16 * MIB) as volume:
        volume.pwrite(os.urandom(16 * MIB), 0)
        volume.snapshot("one")
    serve(folder)
    program = (  # it would take two minutes
        "import sys, cowengine; store = cowengine.connect(sys.argv[1]);"
        "store.open_volume('a').verify(lambda report: print('at it', flush=True), rate=1 << 17)"
    )
    client = subprocess.Popen([sys.executable, "-P", "-c", program, folder], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert client.stdout.readline() == "at it\n"
    client.send_signal(signal.SIGKILL)
    client.communicate()
    with connect(folder) as other:
        began = time.monotonic()
        _wait(lambda: not _is_busy(other, "a"))
        assert time.monotonic() - began < 60, "the verification went on to its end"


@pytest.mark.privileged()
def test_another_user_is_refused(server: ControlServer) -> None:
    os.chmod(server.path, 0o666)
    for folder in Path(server.path).parents:
        if folder.owner() == "root" and folder != Path("/"):
            os.chmod(folder, folder.stat().st_mode | 0o011)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setuid(65534)
            client = Raw(server.path)
            error = client.receive()["error"]
            code = 0 if error["data"]["type"] == "ReadOnlyError" and "65534" in error["message"] else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with connect(server.store.path) as store:
        assert store.volumes() == []


def test_the_socket_is_for_its_user_alone(server: ControlServer) -> None:
    assert os.stat(server.path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(server.path)).st_mode & 0o777 == 0o700


def test_paths_that_are_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = str(tmp_path / ("long" * 50) / ("longer" * 20))
    os.makedirs(os.path.dirname(folder))
    with Store.create(folder) as store, ControlServer(store) as server:
        server.start()
        assert len(server.path) > 300
        with connect(folder) as remote, remote.create_volume("a", MIB) as volume:
            volume.pwrite(b"there", 0)
            assert volume.snapshot("one").pread(5, 0) == b"there"


def test_what_lies_in_the_way_of_the_socket(folder: str) -> None:
    with Store.create(folder) as store:
        os.mkdir(os.path.join(folder, "run"))
        Path(control_path(folder)).write_text("precious")
        with pytest.raises(cowengine.ExistsError):
            ControlServer(store).start()
        assert Path(control_path(folder)).read_text() == "precious"
        with connect_refused(folder):
            pass


@contextmanager
def connect_refused(folder: str) -> Iterator[None]:
    """A store that is owned and not served."""
    with pytest.raises(cowengine.BusyError, match="owned by another process"):
        connect(folder)
    yield


def test_a_stale_socket(folder: str) -> None:
    with Store.create(folder) as store, ControlServer(store) as server:
        server.start()
        listener = socket.socket(fileno=os.dup(server._listener.fileno()))  # type: ignore[union-attr]
        path = server.path
    listener.close()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    with connect(folder) as store:  # as nobody listens, it is opened
        assert type(store) is Store
        with ControlServer(store) as server:
            server.start()
            with pytest.raises(cowengine.BusyError, match="somebody serves"):
                ControlServer(store).start()


def test_the_server_is_killed(folder: str, serve: Serve) -> None:
    with Store.create(folder) as store:
        store.create_volume("a", MIB)
    server = serve(folder)
    store = connect(folder)
    volume = store.open_volume("a")
    volume.pwrite(b"kept", 0)
    snapshot = volume.snapshot("kept")
    pending = store.prepare_set(["a"], "set")
    server.kill()
    server.wait()
    for call in (lambda: volume.pwrite(b"x", 0), store.volumes, pending.commit, snapshot.delete):
        with pytest.raises(cowengine.ClosedError):
            call()
    store.close()
    with connect(folder) as again, again.open_volume("a") as after:
        assert type(again) is Store
        assert after.get_snapshot("kept").pread(4, 0) == b"kept"
        assert again.snapshot_sets() == []
        assert again.check().ok


def test_draining_answers_what_runs_and_takes_no_more(server: ControlServer) -> None:
    store = connect(server.store.path)
    volume = store.create_volume("a", 16 * MIB)
    volume.pwrite(os.urandom(16 * MIB), 0)
    volume.snapshot("one")
    reports: list[cowengine.Report] = []
    begun = threading.Event()

    def verify() -> None:
        reports.append(volume.verify(lambda _: begun.set(), rate=MIB))

    thread = threading.Thread(target=verify)
    thread.start()
    begun.wait(60)
    assert server.drain()
    thread.join()
    assert 0 < reports[0].counts["blocks"] < 4096  # cut short, and answered
    with pytest.raises(cowengine.ClosedError):
        store.volumes()
    store.close()
    assert server.store.volumes() == ["a"]


def test_a_store_is_not_used_in_a_child(remote: Store) -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            remote.volumes()
        except cowengine.ClosedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert remote.volumes() == []


def test_threads_share_a_store(remote: Store) -> None:
    volume = remote.create_volume("a", MIB)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                volume.pwrite(bytes([number]) * 512, number * 512)
                snapshot = volume.snapshot(f"{number}-{turn}")
                assert snapshot.pread(512, number * 512) == bytes([number]) * 512
                snapshot.delete()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert volume.snapshots() == []


def test_connections_are_closed_in_the_end(server: ControlServer) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with connect(server.store.path) as store:
        store.create_volume("a", MIB).snapshot("one").pread(1, 0)
    _wait(lambda: not server._clients)
    before = descriptors()
    for _ in range(20):
        with connect(server.store.path) as store, store.open_volume("a") as volume:
            volume.get_snapshot("one").pread(1, 0)
    _wait(lambda: not server._clients and descriptors() <= before)
