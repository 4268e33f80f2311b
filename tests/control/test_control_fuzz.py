"""Messages that nobody meant: each is answered with an error or a result, and the store is sound in the end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cowengine import Store, connect
from cowengine.control import ControlServer
from cowengine.control.methods import METHODS
from cowengine.nbd.sockets import connect_unix

MIB = 1 << 20
VOLUMES = st.sampled_from(["a", "b", "c"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY = st.recursive(PLAIN, lambda value: st.lists(value, max_size=3))
DONE: set[str] = set()  # methods that returned a result
NUMBERS = st.integers(-2, 5 * MIB) | st.integers()
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "text": VOLUMES | st.text(max_size=300),
    "path": st.text(max_size=20),  # none of them absolute, as nothing is to be written somewhere
    "integer": NUMBERS,
    "boolean": st.booleans(),
    "object": st.dictionaries(st.text(max_size=5), PLAIN, max_size=3),
    "texts": st.lists(VOLUMES, max_size=4),
    "reference": st.integers(0, 8) | st.text(max_size=20) | VOLUMES,
    "bytes": st.sampled_from(["", "AAAA", "AAA", "\0"]),
    "date": st.sampled_from(["2020-01-01T00:00:00+00:00", "2020-01-01", "x"]),
    "volume": st.fixed_dictionaries({"name": VOLUMES})
    | st.fixed_dictionaries({"name": VOLUMES}, optional={"id": st.text(max_size=3), "head": VOLUMES}),
    "set": st.fixed_dictionaries({}, optional={"id": st.uuids().map(str), "name": VOLUMES, "members": st.just([])}),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A method with parameters of their kinds, but for some that are anything, too few or too many."""
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    params = {}
    for name, kind in method.params.items():
        if draw(st.integers(0, 9)) < 9:
            sane = KINDS[kind.removesuffix("?")]
            params[name] = draw(sane if kind == "path" or draw(st.integers(0, 9)) < 9 else ANY)
    if draw(st.integers(0, 9)) == 9:
        params[draw(st.text(max_size=5))] = draw(ANY)
    if not method.params.get("path"):
        return method.name, params
    return method.name, {**params, "path": str(params.get("path", "x")).lstrip("/")}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlServer]:
    folder = tmp_path_factory.mktemp("fuzz") / "store"
    with Store.create(folder) as store, ControlServer(store) as server:
        server.start()
        yield server
        for name in store.volumes():
            assert store.open_volume(name).check().ok
        assert len(DONE) > 8, f"nothing but errors is no test: {DONE}"
        assert sorted(path.name for path in Path(folder).parent.iterdir()) == ["store"]


def asked(server: ControlServer, lines: list[bytes]) -> list[Any]:
    """What a new connection says to each line, until it ends. The volumes that others took away are there again."""
    for name in {"a", "b", "c"} - set(server.store.volumes()):
        server.store.create_volume(name, MIB).snapshot("a")
        server.store.hand_back(name)
    connection = connect_unix(server.path, 60.0)
    hello = {"jsonrpc": "2.0", "id": 0, "method": "hello", "params": {"versions": [1], "client": "fuzz"}}
    with connection, connection.makefile("rb") as answers:
        connection.sendall(b"".join(line + b"\n" for line in [json.dumps(hello).encode(), *lines]))
        connection.shutdown(socket.SHUT_WR)
        return [json.loads(answer) for answer in answers][1:]


@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(st.lists(calls(), min_size=1, max_size=5))
def test_calls_with_any_parameters(served: ControlServer, made: list[tuple[str, dict[str, Any]]]) -> None:
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": number, "method": name, "params": params}).encode()
        for number, (name, params) in enumerate(made)
    ]
    answers = [answer for answer in asked(served, lines) if answer.get("method") != "progress"]
    refused = [answer for answer in answers if "error" in answer]
    assert all(answer["error"]["code"] != -32603 for answer in refused), refused
    if not any("NaN" in str(line) or "Infinity" in str(line) for line in lines):
        assert [answer["id"] for answer in answers] == list(range(len(lines)))
    DONE.update(made[answer["id"]][0] for answer in answers if "result" in answer)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(calls(), st.data())
def test_bytes_of_any_kind(served: ControlServer, made: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    line = bytearray(json.dumps({"jsonrpc": "2.0", "id": 1, "method": made[0], "params": made[1]}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(line)))
        line[position : position + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    bad = bytes(line).replace(b"\n", b"").replace(b'"/', b'"')
    answers = [answer for answer in asked(served, [bad]) if answer.get("method") != "progress"]
    assert all("error" in answer or "result" in answer for answer in answers)
    assert not any(answer.get("error", {}).get("code") == -32603 for answer in answers), answers
    with connect(served.store.path) as store:
        store.volumes()  # it is there for others
