"""The handshake: what each option is answered, and what comes of clients that do not keep to the protocol."""

from __future__ import annotations

import random
import struct
import time

import pytest
from nbd_wire import Wire, text

from cowengine import Store
from cowengine.nbd import protocol
from cowengine.nbd.protocol import Option, Reply, TransmissionFlag

from .test_exported import until


def test_go_describes_the_export(volume, serve, sock):
    serve(volume)
    with Wire(sock) as wire:
        asked = text("disk") + struct.pack(">HHHH", 3, 1, 2, 3)
        replies = wire.ask(Option.GO, asked)
        assert [kind for kind, _ in replies] == [3, 3, 3, 3, 1]
        infos = {int.from_bytes(payload[:2]): payload[2:] for kind, payload in replies if kind == 3}
        size, flags = struct.unpack(">QH", infos[0])
        assert size == volume.size
        assert infos[1] == b"disk"
        assert b"volume" in infos[2]
        assert struct.unpack(">III", infos[3]) == (1, 4096, 32 << 20)
        assert not flags & (TransmissionFlag.READ_ONLY | TransmissionFlag.SEND_DF)
        wire.request(0, 0, 512)
        assert wire.answer() == (0, 7)
        assert wire.take(512) == bytes(512)


def test_info_leaves_the_handshake_going(volume, serve, sock):
    server = serve(volume)
    with Wire(sock) as wire:
        for _ in range(3):
            assert wire.ask(Option.INFO, text("") + b"\0\0")[-1] == (Reply.ACK, b"")
        assert wire.ask(Option.INFO, text("other") + b"\0\0")[0][0] == Reply.ERR_UNKNOWN
        assert server.connections == 1
        assert wire.go()[0] == volume.size


def test_flags_of_snapshots_and_of_structured_replies(volume, tmp_path, serve, sock):
    with Store.create(tmp_path / "store") as store:
        store.create_volume("v", 1 << 20).snapshot("s")
        serve(store)
        with Wire(sock) as wire:
            _, flags = wire.go("v@s", structured=True)
            assert flags & TransmissionFlag.READ_ONLY
            assert flags & TransmissionFlag.SEND_DF
            assert not flags & (TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_FUA)
        with Wire(sock) as wire:
            assert not wire.go("v")[1] & TransmissionFlag.READ_ONLY


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124)])
def test_export_name_answers_with_zeroes_unless_told(volume, serve, sock, flags, zeroes):
    serve(volume)
    with Wire(sock, flags=flags) as wire:
        wire.option(Option.EXPORT_NAME, b"disk")
        size, _ = struct.unpack(">QH", wire.take(10))
        assert size == volume.size
        assert wire.take(zeroes) == bytes(zeroes)
        wire.request(0, 0, 8192, cookie=9)
        assert wire.answer() == (0, 9)
        assert wire.take(8192) == bytes(8192)


def test_export_name_of_nothing_ends_the_connection(volume, serve, sock):
    serve(volume)
    with Wire(sock) as wire:
        wire.option(Option.EXPORT_NAME, b"nothing")
        assert wire.ends()


def test_a_store_lists_its_volumes_and_snapshots(tmp_path, serve, sock):
    with Store.create(tmp_path / "store") as store:
        volume = store.create_volume("mail@home", 1 << 20)
        volume.snapshot("mon@day")
        volume.snapshot("gone").to_anchor()
        store.create_volume("index", 1 << 20)
        serve(store)
        with Wire(sock) as wire:
            listed = [payload for kind, payload in wire.ask(Option.LIST) if kind == Reply.SERVER]
            names = [payload[4 : 4 + int.from_bytes(payload[:4])].decode() for payload in listed]
            assert names == ["index", "mail@home", "mail@home@mon@day"]
            for name in names:
                assert wire.ask(Option.INFO, text(name) + b"\0\0")[-1][0] == Reply.ACK
            for name in ("", "mail", "mail@home@gone", "index@mon@day", "@", "nobody", "..", "a/b", "x" * 4000):
                assert wire.ask(Option.INFO, text(name) + b"\0\0")[-1][0] == Reply.ERR_UNKNOWN, name


def test_abort_is_acknowledged(volume, serve, sock):
    serve(volume)
    with Wire(sock) as wire:
        assert wire.ask(Option.ABORT) == [(Reply.ACK, b"")]
        assert wire.ends()


def names_of(replies):
    assert replies[-1] == (Reply.ACK, b"")
    return [payload[4:].decode() for _, payload in replies[:-1]]


def test_contexts_are_listed_by_name_and_prefix(volume, serve, sock):
    serve(volume)
    bitmaps = ["qemu:dirty-bitmap:tuesday", "qemu:dirty-bitmap:monday"]
    everything = ["base:allocation", "qemu:allocation-depth", *bitmaps]
    with Wire(sock) as wire:
        assert wire.ask(Option.STRUCTURED_REPLY)[-1][0] == Reply.ACK
        for queries, expected in (
            ([], everything),
            (["base:"], everything[:1]),
            (["qemu:"], everything[1:]),
            (["qemu:dirty-bitmap:"], bitmaps),
            (["qemu:dirty-bitmap:monday"], bitmaps[1:]),
            (["qemu:dirty-bitmap:mon"], []),
            (["base:allocation", "base:", "other:x", ""], everything[:1]),
        ):
            data = text("disk") + struct.pack(">I", len(queries)) + b"".join(map(text, queries))
            assert names_of(wire.ask(Option.LIST_META_CONTEXT, data)) == expected, queries


def test_contexts_are_selected_by_name_only_and_for_one_export(volume, serve, sock):
    serve(volume)
    with Wire(sock) as wire:
        assert wire.ask(Option.STRUCTURED_REPLY)[-1][0] == Reply.ACK
        queries = ["base:", "qemu:dirty-bitmap:", "qemu:dirty-bitmap:none", "qemu:dirty-bitmap:monday", "base:x"]
        data = struct.pack(">I", len(queries)) + b"".join(map(text, queries))
        assert names_of(wire.ask(Option.SET_META_CONTEXT, text("disk") + data)) == ["qemu:dirty-bitmap:monday"]
        assert wire.go("")[0] == volume.size  # another name than the contexts were selected for: none are
        wire.request(7, 0, 4096)
        magic, _, kind, _, length = struct.unpack(">IHHQI", wire.take(20))
        assert (magic, kind) == (0x668E33EF, 0x8001)
        assert int.from_bytes(wire.take(length)[:4]) == 22


def test_contexts_need_structured_replies(volume, serve, sock):
    serve(volume)
    with Wire(sock) as wire:
        for option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            assert wire.ask(option, text("disk") + bytes(4))[0][0] == Reply.ERR_INVALID


def test_replies_are_agreed_on_once(volume, serve, sock):
    serve(volume)
    with Wire(sock) as wire:
        assert wire.ask(Option.STRUCTURED_REPLY, b"x")[0][0] == Reply.ERR_INVALID
        assert wire.ask(Option.STRUCTURED_REPLY)[0][0] == Reply.ACK
        assert wire.ask(Option.STRUCTURED_REPLY)[0][0] == Reply.ERR_INVALID
        assert wire.ask(Option.EXTENDED_HEADERS)[0][0] == Reply.ACK
        assert wire.ask(Option.EXTENDED_HEADERS)[0][0] == Reply.ERR_INVALID
        assert wire.ask(Option.STRUCTURED_REPLY)[0][0] == Reply.ERR_EXT_HEADER_REQD


@pytest.mark.parametrize(
    ("option", "data", "error"),
    [
        (0, b"", Reply.ERR_UNSUP),
        (4, b"abc", Reply.ERR_UNSUP),
        (4711, b"", Reply.ERR_UNSUP),
        (Option.STARTTLS, b"", Reply.ERR_UNSUP),
        (Option.STARTTLS, b"x", Reply.ERR_INVALID),
        (Option.LIST, b"x", Reply.ERR_INVALID),
        (Option.GO, b"", Reply.ERR_INVALID),
        (Option.GO, text("disk"), Reply.ERR_INVALID),
        (Option.GO, text("disk") + b"\0\2\0\1", Reply.ERR_INVALID),
        (Option.GO, text("disk") + b"\0\0more", Reply.ERR_INVALID),
        (Option.GO, b"\xff\xff\xff\xffdisk\0\0", Reply.ERR_INVALID),
        (Option.GO, b"\0\0\0\2\xff\xfe\0\0", Reply.ERR_INVALID),
        (Option.GO, text("x" * 5000) + b"\0\0", Reply.ERR_INVALID),
        (Option.INFO, text("nothing") + b"\0\0", Reply.ERR_UNKNOWN),
        (Option.GO, text("disk@monday") + b"\0\0", Reply.ERR_UNKNOWN),
        (Option.GO, bytes(protocol.OPTION_BYTES_MAX + 1), Reply.ERR_TOO_BIG),
        (Option.LIST, bytes(protocol.SKIPPED_BYTES_MAX), Reply.ERR_TOO_BIG),
    ],
)
def test_a_wrong_option_is_answered_by_an_error_and_the_next_one_is_heard(volume, serve, sock, option, data, error):
    serve(volume)
    with Wire(sock) as wire:
        wire.option(option, data)
        answered, kind, message = wire.reply()
        assert (answered, kind) == (option, error)
        assert message.decode()
        assert wire.go()[0] == volume.size


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (text("disk") + struct.pack(">I", 65) + text("") * 65, Reply.ERR_TOO_BIG),
        (text("disk") + struct.pack(">I", 2) + text("base:allocation"), Reply.ERR_INVALID),
        (text("disk") + struct.pack(">I", 1) + text("x" * 4097), Reply.ERR_INVALID),
        (text("disk") + struct.pack(">I", 0) + b"x", Reply.ERR_INVALID),
        (text("none") + struct.pack(">I", 0), Reply.ERR_UNKNOWN),
    ],
)
def test_a_wrong_selection_of_contexts_is_answered_by_an_error(volume, serve, sock, data, error):
    serve(volume)
    with Wire(sock) as wire:
        assert wire.ask(Option.STRUCTURED_REPLY)[-1][0] == Reply.ACK
        for option in (Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT):
            assert wire.ask(option, data)[-1][0] == error
        assert wire.go()[0] == volume.size


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">I", 0x80000003),
        struct.pack(">I", 3) + b"NOTANOPT" + bytes(8),
        struct.pack(">I", 3) + struct.pack(">QII", 0x49484156454F5054, 3, protocol.SKIPPED_BYTES_MAX + 1),
        struct.pack(">I", 3) + struct.pack(">QII", 0x49484156454F5054, 3, 0xFFFFFFFF),
        struct.pack(">I", 3) + struct.pack(">QII", 0x49484156454F5054, 1, 5000) + bytes(5000),
        b"GET / HTTP/1.0\r\n\r\n",
        struct.pack(">I", 3) + struct.pack(">QII", 0x49484156454F5054, 4711, 0) * 200,
    ],
    ids=["flags", "magic", "too long", "endless", "long name", "http", "too many"],
)
def test_who_does_not_speak_the_protocol_is_left(volume, serve, sock, said):
    server = serve(volume)
    with Wire(sock, flags=None) as wire:
        wire.take(18)
        wire.send(said)
        assert wire.ends()
    with Wire(sock) as wire:
        assert wire.go()[0] == volume.size
        assert server.connections == 1


def test_a_handshake_ends_after_its_time_however_it_is_drawn_out(volume, serve, sock):
    serve(volume, handshake_seconds=0.5)
    with Wire(sock) as silent, Wire(sock) as slow:
        began = time.monotonic()
        with pytest.raises((EOFError, BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < began + 20:
                slow.ask(Option.INFO, text("") + b"\0\0")
                time.sleep(0.05)
        assert time.monotonic() < began + 20
        assert silent.ends()
    until(lambda: is_served(sock))  # as soon as it is quick enough for such a limit


def test_a_handshake_that_breaks_off_anywhere_leaves_nothing_behind(volume, serve, sock):
    server = serve(volume)
    whole = struct.pack(">I", 3)
    for option, data in (
        (Option.STRUCTURED_REPLY, b""),
        (Option.SET_META_CONTEXT, text("") + struct.pack(">I", 1) + text("qemu:dirty-bitmap:monday")),
        (Option.GO, text("") + b"\0\0"),
    ):
        whole += struct.pack(">QII", 0x49484156454F5054, option, len(data)) + data
    for count in range(0, len(whole), 3):
        with Wire(sock, flags=None) as wire:
            wire.send(whole[:count])
    until(lambda: server.connections == 0)
    volume.get_snapshot("monday").delete()


def test_random_handshakes_never_end_the_server(volume, serve, sock):
    server = serve(volume)
    random_ = random.Random(4)
    for _ in range(150):
        with Wire(sock, flags=random_.choice([0, 1, 3])) as wire:
            try:
                for _ in range(random_.randrange(6)):
                    data = random_.randbytes(random_.randrange(40))
                    if random_.random() < 0.5:
                        data = text("disk") + data
                    lie = random_.choice([None, None, None, random_.randrange(100)])
                    wire.option(random_.choice([*Option, 4, 12]), data, lie)
            except OSError:
                pass  # it has ended the connection
    until(lambda: server.connections == 0)
    with Wire(sock) as wire:
        assert wire.go()[0] == volume.size


def is_served(sock):
    try:
        with Wire(sock) as wire:
            return wire.go()[0] > 0
    except (EOFError, OSError):
        return False
