"""Servers with the right certificate that answer garbage, too much, or nothing: a reason, and never half a group."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, ConfigError
from slurm_hooks import reading
from slurm_hooks.reading import Reading, Request, read_directory
from tests.testbed import hostile_ldap as hostile
from tests.testbed.hostile_ldap import Behaviour, HostileLdap, answers, entry, fails, reference
from tests.testbed.pki import CA, Pair
from tests.testbed.slapd import SUFFIX, Slapd, group, group_dn, person, user

MakeRequest = Callable[..., Request]
AT_ONCE: list[Behaviour] = [
    hostile.noise,
    hostile.another_protocol,
    hostile.torn_login,
    hostile.referred_login,
    hostile.refuses_politely,
    hostile.noise_later,
    hostile.torn,
    hostile.no_word_about_pages,
    hostile.name_outside_utf8,
    # busy, unavailable, other, and codes that nobody defined or that say nothing in an answer
    *map(fails, (1, 10, 14, 51, 52, 80, 99)),
]
LATE: list[Behaviour] = [
    hostile.silent,
    hostile.giant_login,
    hostile.silent_later,
    hostile.another_number,
    hostile.no_end_of_entries,
    hostile.no_end_of_pages,
]


@pytest.fixture(scope="session")
def pair(ca: CA, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return ca.server("hostile", ["127.0.0.1"], tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def good(shared: Slapd) -> Iterator[str]:
    shared.add(user("survivor") + group("survivors", [person("survivor")]))
    yield group_dn("survivors")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("behaviour", [*AT_ONCE, *LATE], ids=lambda each: each.__name__)
def test_a_server_that_is_no_directory_is_an_error_and_the_next_one_is_asked(
    shared: Slapd, request_to: MakeRequest, pair: Pair, good: str, behaviour: Behaviour
) -> None:
    with HostileLdap(pair, behaviour) as server:
        with pytest.raises((BackendUnavailable, ConfigError)) as caught:
            read_directory(request_to(shared, good, uris=(server.uri,)), time.time())
        assert caught.value.advice
        assert str(caught.value).isascii()
        assert "said by the server" not in str(caught.value)
        got = read_directory(request_to(shared, good, uris=(server.uri, shared.uri)), time.time())
    assert got.uri == shared.uri
    assert got.members.groups[good].members == {"survivor"}


def test_an_answer_without_end_ends_with_the_memory_that_it_may_take(
    shared: Slapd, request_to: MakeRequest, pair: Pair, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_MEMORY", 1 << 30)
    with HostileLdap(pair, hostile.no_end_of_entries) as server:
        got = read_directory(request_to(shared, good, uris=(server.uri, shared.uri)), time.time())
    assert got.members.groups[good].members == {"survivor"}
    assert "TIMEOUT" not in got.failures[0]


ALICE = entry(f"uid=alice,ou=people,{SUFFIX}".encode(), uid=[b"alice"])
PHI = f"cn=phi,ou=groups,{SUFFIX}".encode()


def phi(*members: bytes) -> bytes:
    return entry(PHI, objectClass=[b"groupOfNames"], cn=[b"phi"], member=members)


def read(shared: Slapd, request_to: MakeRequest, pair: Pair, behaviour: Behaviour) -> Reading:
    with HostileLdap(pair, behaviour) as server:
        return read_directory(request_to(shared, PHI.decode(), uris=(server.uri,)), time.time())


def test_a_part_of_the_answer_that_is_elsewhere_is_neither_followed_nor_missed_in_silence(
    shared: Slapd, request_to: MakeRequest, pair: Pair, tmp_path: Path
) -> None:
    """The other server would get our password. It is there, with a certificate that we would trust."""
    log = tmp_path / "visited"

    def visited(session: hostile.Session) -> None:
        log.write_text("visited")

    with HostileLdap(pair, visited) as elsewhere:
        away = reference(elsewhere.uri.encode() + b"/ou=people," + SUFFIX.encode())
        got = read(
            shared,
            request_to,
            pair,
            answers([ALICE, away], [phi(), away], [phi(f"uid=alice,ou=people,{SUFFIX}".encode())]),
        )
    assert got.members.groups[PHI.decode()].members == {"alice"}
    assert any("other servers have parts" in note for note in got.members.notes)
    assert not log.exists()


def test_members_that_are_no_names(shared: Slapd, request_to: MakeRequest, pair: Pair) -> None:
    odd = [
        b"alice",
        b"",
        b"\xff\xfe",
        b"uid=alice",
        b"uid=alice,",
        b'uid="alice",dc=x',
        b"#04",
        b"uid=#0403616263",
        b"\0",
    ]
    alice = f" UID = alice , ou=People,{SUFFIX} ".encode()
    got = read(shared, request_to, pair, answers([ALICE], [phi()], [phi(*odd, alice)]))
    assert got.members.groups[PHI.decode()].members == {"alice"}
    assert sum("not a distinguished name" in note for note in got.members.notes) == len(odd) - 1


def test_another_entry_than_the_group_asked_for_is_no_group(shared: Slapd, request_to: MakeRequest, pair: Pair) -> None:
    got = read(shared, request_to, pair, answers([ALICE], [phi()], [phi(), phi()]))
    assert got.members.groups[PHI.decode()].missing
