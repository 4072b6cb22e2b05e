"""The node daemon's answers, with a Vault that a test fills: nothing leaves it unless grant, Slurm and place agree."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from conf.policy import Policy
from conf.site import Site
from keys.secret import Secret
from keys.vault_node import VaultNode
from slurm_hooks import wire
from slurm_hooks.noded import NodeDaemon
from slurm_hooks.serve import Answer, Peer

Place = Callable[[str | None], None]
GRANT = {
    **{"v": "1", "incarnation": "ab" * 16, "key": "n1_test-17-0123456789abcdef", "cluster": "test", "job": "17"},
    **{"uid": "1001", "user": "alice", "nodes": "n1,n2", "restarts": "0", "scratch": "209715200"},
    **{"class": "phi", "residency": "eu", "datasets": "", "created": "1790000000"},
}
FIELDS = {
    **{"verb": b"open", "job": b"17", "uid": b"1001", "user": b"alice", "cluster": b"test", "node": b"n1"},
    **{"nodes": b"n2,n1", "restarts": b"0"},
}


class Vault:
    def __init__(self) -> None:
        self.grants: dict[str, dict[str, str]] = {"17": dict(GRANT)}
        self.made: list[str] = []
        self.unwrapped: list[tuple[str, str]] = []
        self.secrets: list[Secret] = []
        self.away = False

    def read_grant(self, job: str) -> dict[str, str] | None:
        if self.away:
            raise BackendUnavailable("Vault is away")
        return self.grants.get(job)

    def data_key(self, key: str) -> tuple[Secret, str]:
        self.made.append(key)
        self.secrets.append(Secret(b"s" * 64))
        return self.secrets[-1], "vault:v1:wrapped"

    def unwrap(self, key: str, wrapped: str) -> Secret:
        self.unwrapped.append((key, wrapped))
        return Secret(b"s" * 64)


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Vault:
    made = Vault()
    monkeypatch.setattr(VaultNode, "from_site", lambda *_: made)
    return made


@pytest.fixture
def daemon(site: Site, policy: Policy, vault: Vault, place: Place) -> NodeDaemon:
    place("eu-central-1\n")
    return NodeDaemon(site, policy, "n1")


def ask(daemon: NodeDaemon, **more: bytes | None) -> Answer:
    fields = {name: value for name, value in {**FIELDS, **more}.items() if value is not None}
    return asyncio.run(daemon.open(fields, Peer(1, 0, 0)))


def refused(daemon: NodeDaemon, vault: Vault, **more: bytes | None) -> str:
    with pytest.raises(Refused) as caught:
        ask(daemon, **more)
    assert vault.made == []
    return caught.value.rule


def test_grant_and_data_key(daemon: NodeDaemon, vault: Vault) -> None:
    answer = ask(daemon)

    assert answer["verdict"] == "allow"
    assert answer["place"] == "eu-central-1"
    assert answer["plaintext"] == b"s" * 64
    assert answer["wrapped"] == "vault:v1:wrapped"
    assert {name.removeprefix("grant."): answer[name] for name in answer if name.startswith("grant.")} == GRANT
    assert vault.made == [GRANT["key"]]


def test_the_daemons_own_copy_of_the_key_is_wiped(daemon: NodeDaemon, vault: Vault) -> None:
    ask(daemon)

    assert [len(secret) for secret in vault.secrets] == [0]


def test_without_scratch_no_key_is_made(daemon: NodeDaemon, vault: Vault) -> None:
    vault.grants["17"]["scratch"] = "0"

    answer = ask(daemon)

    assert answer["verdict"] == "allow"
    assert answer["grant.scratch"] == "0"
    assert not {"plaintext", "wrapped"} & set(answer)
    assert vault.made == []


def test_no_grant_no_start(daemon: NodeDaemon, vault: Vault) -> None:
    assert refused(daemon, vault, job=b"18") == "grant.missing"


def test_vault_away(daemon: NodeDaemon, vault: Vault) -> None:
    vault.away = True
    with pytest.raises(BackendUnavailable):
        ask(daemon)
    vault.away = False
    assert ask(daemon)["verdict"] == "allow"


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("node.other", {"node": b"n2"}),
        ("node.other", {"node": b""}),
        ("grant.uid", {"uid": b"1002"}),
        ("grant.uid", {"uid": b"0"}),
        ("grant.uid", {"uid": b"-1"}),
        ("grant.uid", {"uid": b""}),
        ("grant.cluster", {"cluster": b"other"}),
        ("grant.cluster", {"cluster": b""}),
        ("grant.restarts", {"restarts": b"1"}),
        ("grant.restarts", {"restarts": b""}),
        ("grant.nodes", {"nodes": b"n1"}),
        ("grant.nodes", {"nodes": b""}),
        ("grant.nodes", {"nodes": b"n1,n2,n3"}),
        ("grant.nodes", {"nodes": b"n1,n1,n2"}),
    ],
)
def test_slurm_says_something_else(daemon: NodeDaemon, vault: Vault, rule: str, fields: dict[str, bytes]) -> None:
    assert refused(daemon, vault, **fields) == rule
    # and the true one has not been used up by that
    assert ask(daemon)["verdict"] == "allow"


def test_another_jobs_grant(daemon: NodeDaemon, vault: Vault) -> None:
    vault.grants["18"] = dict(GRANT)

    assert refused(daemon, vault, job=b"18") == "grant.job"


@pytest.mark.parametrize("name", ["job", "uid", "cluster", "node", "nodes", "restarts"])
def test_a_missing_field(daemon: NodeDaemon, vault: Vault, name: str) -> None:
    with pytest.raises(wire.WireError, match=name):
        ask(daemon, **{name: None})
    assert vault.made == []


@pytest.mark.parametrize(
    "change",
    [
        *({"key": "n2_test-17-0123456789abcdef", "nodes": "n1,n2"}, {"key": "n1_test-18-0123456789abcdef"}, {"v": "2"}),
        *({"scratch": "-1"}, {"scratch": "1G"}, {"incarnation": "short"}, {"class": "phi\nx"}, {"more": "x"}),
    ],
    ids=str,
)
def test_a_damaged_grant(daemon: NodeDaemon, vault: Vault, change: dict[str, str]) -> None:
    vault.grants["17"].update(change)

    assert refused(daemon, vault).startswith("grant.")


def test_a_grant_is_good_for_once(daemon: NodeDaemon, vault: Vault) -> None:
    ask(daemon)

    with pytest.raises(Refused) as caught:
        ask(daemon)
    assert caught.value.rule == "grant.seen"
    assert len(vault.made) == 1
    vault.grants["17"]["incarnation"] = "cd" * 16
    assert ask(daemon)["verdict"] == "allow"


def test_two_prologs_in_the_same_instant_get_one_key(daemon: NodeDaemon, vault: Vault) -> None:
    together = threading.Barrier(8)
    read = vault.read_grant

    def wait(job: str) -> dict[str, str] | None:
        together.wait(20)
        return read(job)

    vault.read_grant = wait  # type: ignore[method-assign]

    def one(_: int) -> str:
        try:
            return str(ask(daemon)["verdict"])
        except Refused as error:
            return error.rule

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(one, range(8)))
    assert found == ["allow", *["grant.seen"] * 7]
    assert len(vault.made) == 1


@pytest.mark.parametrize(
    "region", [None, "", "\n", "mars-1", "eu-central-1\nus-east-1", "EU-CENTRAL-1", "\udcff", "x" * 300]
)
def test_a_node_that_does_not_know_its_place(
    daemon: NodeDaemon, vault: Vault, place: Place, region: str | None
) -> None:
    place(region)

    for residency in ("eu", ""):
        vault.grants["17"]["residency"] = residency
        answer = ask(daemon)
        assert (answer["verdict"], answer["rule"]) == ("refuse", "node.place")
        assert "place" in str(answer["message"])
        assert answer["advice"]
        # for the audit trail
        assert (answer["proof.method"], answer["proof.verified"]) == ("file", "")
    with pytest.raises(Refused):
        asyncio.run(daemon.ping({}, Peer(1, 0, 0)))
    assert vault.made == []
    # it is read anew each time
    place("eu-central-1")
    assert ask(daemon)["verdict"] == "allow"


def test_a_place_that_others_can_write(daemon: NodeDaemon, vault: Vault, site: Site) -> None:
    from pathlib import Path

    Path(site.node.place_file).chmod(0o666)
    answer = ask(daemon)
    assert (answer["verdict"], answer["rule"]) == ("refuse", "node.place")
    assert "written by group or others" in str(answer["message"])
    assert vault.made == []


@pytest.mark.parametrize("method", ["none", "ec2", "manifest"])
def test_a_place_that_is_not_proved(site: Site, policy: Policy, vault: Vault, place: Place, method: str) -> None:
    place("eu-central-1")
    daemon = NodeDaemon(attrs.evolve(site, node=attrs.evolve(site.node, proof=method)), policy, "n1")

    answer = ask(daemon)

    assert (answer["verdict"], answer["rule"]) == ("refuse", "node.place-proof")
    assert (answer["proof.method"], answer["proof.verified"]) == (method, "")
    assert answer["proof.reason"]
    assert vault.made == []
    with pytest.raises(Refused):
        asyncio.run(daemon.ping({}, Peer(1, 0, 0)))


def test_the_verdict_is_in_the_answer(daemon: NodeDaemon) -> None:
    answer = ask(daemon)

    assert {name: answer[name] for name in ("proof.method", "proof.region", "proof.verified")} == {
        **{"proof.method": "file", "proof.region": "eu-central-1", "proof.verified": ""},
    }
    assert "self-declared" in str(answer["proof.reason"])


def test_another_jurisdiction(daemon: NodeDaemon, vault: Vault, place: Place) -> None:
    place("us-east-1")

    assert refused(daemon, vault) == "residency.node"
    vault.grants["17"]["residency"] = "us"
    assert ask(daemon)["verdict"] == "allow"


def test_a_job_without_a_residency_may_run_anywhere_that_is_known(
    daemon: NodeDaemon, vault: Vault, place: Place
) -> None:
    place("us-east-1")
    vault.grants["17"]["residency"] = ""

    assert ask(daemon)["place"] == "us-east-1"


def test_ping(daemon: NodeDaemon) -> None:
    assert asyncio.run(daemon.ping({}, Peer(1, 0, 0))) == {
        **{"verdict": "allow", "node": "n1", "region": "eu-central-1", "jurisdiction": "eu"},
        "proof": "file eu-central-1 not verified: self-declared: nothing but root's place file says so",
    }


@pytest.mark.parametrize("node", ["", "n_1", "../n1", "n1/x", ".n1"])
def test_a_daemon_for_no_node(site: Site, policy: Policy, vault: Vault, node: str) -> None:
    with pytest.raises(SecureSlurmError):
        NodeDaemon(site, policy, node)


class TestUnwrap:
    """The key of a job that was frozen, again."""

    def one(self, daemon: NodeDaemon, **more: str) -> bytes:
        words = {"job": "17", "incarnation": GRANT["incarnation"], "key": GRANT["key"], "wrapped": "vault:v1:x", **more}
        return bytes(daemon.unwrap(**words).reveal())

    @pytest.mark.parametrize(
        "more", [{"job": "18"}, {"incarnation": "cd" * 16}, {"key": "n1_test-17-fedcba9876543210"}, {"incarnation": ""}]
    )
    def test_not_without_the_grant_of_this_start(self, daemon: NodeDaemon, vault: Vault, more: dict[str, str]) -> None:
        with pytest.raises(Refused) as caught:
            self.one(daemon, **more)
        assert (caught.value.rule, vault.unwrapped) == ("freeze.grant", [])

    def test_not_where_the_data_may_not_be(self, daemon: NodeDaemon, vault: Vault, place: Place) -> None:
        place("us-east-1\n")
        with pytest.raises(Refused) as caught:
            self.one(daemon)
        assert (caught.value.rule, vault.unwrapped) == ("residency.node", [])
        place(None)
        with pytest.raises(Refused):
            self.one(daemon)
        assert vault.unwrapped == []

    def test_as_vault_gives_it(self, daemon: NodeDaemon, vault: Vault) -> None:
        assert self.one(daemon) == b"s" * 64
        assert vault.unwrapped == [(GRANT["key"], "vault:v1:x")]
