from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_hooks import wire
from slurm_hooks.wire import WireError

ROOT = Path(__file__).parents[3]
keys = st.from_regex(r"[a-z0-9_.]{1,64}", fullmatch=True)


def body_of(message: bytes) -> bytes:
    header, newline, body = message.partition(b"\n")
    assert wire.decode_header(header + newline) == len(body)
    return body


@given(st.dictionaries(keys, st.binary(max_size=200), max_size=40))
def test_what_is_encoded_is_decoded(fields: dict[str, bytes]) -> None:
    assert wire.decode_body(body_of(wire.encode(fields))) == fields


@given(st.binary())
def test_a_hostile_body_is_only_ever_a_wire_error(body: bytes) -> None:
    try:
        fields = wire.decode_body(body)
    except WireError:
        return
    assert body_of(wire.encode(fields)) == body


@given(st.dictionaries(keys, st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_a_damaged_body_is_only_ever_a_wire_error(fields: dict[str, bytes], data: st.DataObject) -> None:
    body = bytearray(body_of(wire.encode(fields)))
    at = data.draw(st.integers(min_value=0, max_value=len(body) - 1))
    body[at] = data.draw(st.integers(min_value=0, max_value=255))
    try:
        wire.decode_body(bytes(body))
        wire.decode_body(bytes(body[:at]))
    except WireError:
        return


@given(st.binary())
def test_a_hostile_header_is_only_ever_a_wire_error(line: bytes) -> None:
    for header in (line, b"SS1 " + line, b"SS1 " + line + b"\n"):
        try:
            assert 0 <= wire.decode_header(header) <= wire.MAX_BODY
        except WireError:
            continue


@pytest.mark.parametrize(
    "body",
    [
        b"1:a,1:b",
        b"1:a,",
        b"1:a,1:b,x",
        b"01:a,1:b,",
        b"-1:a,1:b,",
        b"1:a,1:b,1:a,1:c,",
        b"1:A,1:b,",
        b"0:,1:b,",
        b"2:\xc3\xa9,1:b,",
        b"1:a;1:b,",
        b"99999999:a,1:b,",
        b"9999999:a,1:b,",
        b"1 :a,1:b,",
        b"65:" + b"a" * 65 + b",0:,",
    ],
)
def test_refused_bodies(body: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_body(body)


@pytest.mark.parametrize(
    "line",
    [b"", b"SS1 1", b"SS2 1\n", b"SS1 +1\n", b"SS1 01\n", b"SS1 1048577\n", b"SS1  1\n", b"SS1 1\n\n", b"ss1 1\n"],
)
def test_refused_headers(line: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_header(line)


def test_limits() -> None:
    at_limit = {f"k{number}": b"" for number in range(wire.MAX_FIELDS)}

    assert wire.decode_body(body_of(wire.encode(at_limit))) == at_limit
    with pytest.raises(WireError):
        wire.encode({**at_limit, "more": b""})
    with pytest.raises(WireError):
        wire.decode_body(body_of(wire.encode(at_limit)) + b"4:more,0:,")
    with pytest.raises(WireError):
        wire.encode({"a": b"x" * wire.MAX_BODY})
    with pytest.raises(WireError):
        wire.decode_body(b"1:a,1048576:" + b"x" * wire.MAX_BODY + b",")


@pytest.mark.parametrize("name", ["", "A", "a b", "ä", "a\n", "a" * 65])
def test_a_bad_name_is_not_sent(name: str) -> None:
    with pytest.raises(WireError):
        wire.encode({name: b""})


def test_texts() -> None:
    assert wire.decode_body(body_of(wire.encode({"a": "é", "b": "\udcff"}))) == {"a": b"\xc3\xa9", "b": b"\xff"}
    with pytest.raises(WireError):
        wire.encode({"a": "\ud800"})
    assert wire.text({"a": b"x"}, "a") == "x"
    assert wire.text({}, "a", "default") == "default"
    with pytest.raises(WireError, match="lacks"):
        wire.text({}, "a")
    with pytest.raises(WireError, match="UTF-8"):
        wire.text({"a": b"\xff"}, "a")


@pytest.mark.parametrize(("value", "nonce"), [(b"0af", "0af"), (None, ""), (b"", ""), (b"a b", ""), (b"\xff", "")])
def test_nonces(value: bytes | None, nonce: str) -> None:
    assert wire.valid_nonce(value) == nonce


Reply = Callable[[dict[str, bytes]], bytes]


def ask(tmp_path: Path, reply: Reply) -> dict[str, bytes]:
    """One exchange with a server that answers once."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                file = connection.makefile("rb")
                size = wire.decode_header(file.readline())
                connection.sendall(reply(wire.decode_body(file.read(size))))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            return wire.exchange(path, {"verb": "ping"}, timeout=5)
        finally:
            thread.join()


def test_exchange(tmp_path: Path) -> None:
    answer = ask(tmp_path, lambda fields: wire.encode({**fields, "verdict": "allow"}))

    assert answer["verdict"] == b"allow"
    assert answer["verb"] == b"ping"


@pytest.mark.parametrize(
    "reply",
    [
        lambda _: b"",
        lambda _: b"SS1 10\nabc",
        lambda _: b"x" * 1000,
        lambda _: b"SS1 0\n",
        lambda _: wire.encode({"nonce": "0" * 32, "verdict": "allow"}),
        lambda _: wire.encode({"verdict": "allow"}),
        lambda fields: wire.encode({**fields})[:-1],
    ],
)
def test_what_is_no_answer(tmp_path: Path, reply: Reply) -> None:
    with pytest.raises(WireError):
        ask(tmp_path, reply)


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(WireError):
        wire.exchange(str(tmp_path / "absent"), {"verb": "ping"}, timeout=1)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with pytest.raises(WireError):
            wire.exchange(path, {"verb": "ping"}, timeout=0.05)
    with pytest.raises(WireError):
        wire.exchange(path, {"verb": "ping"}, timeout=0)


def test_root_hooks_can_import_it() -> None:
    """Under -IS there are no site packages, and a hook pays for every module that is imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import slurm_hooks.wire, slurm_hooks.hostlist;"
        "heavy = {'asyncio', 'logging', 'dataclasses', 'pathlib', 'attr', 'attrs', 'subprocess'} & set(sys.modules);"
        "sys.exit(' '.join(heavy) or 0)"
    )

    done = subprocess.run([sys.executable, "-IS", "-c", code], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
