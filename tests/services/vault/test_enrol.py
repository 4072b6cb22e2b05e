"""Nodes enrol, with a real Vault behind the daemon: who gets a certificate, what it opens, and when it stops."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest

from conf.errors import BackendUnavailable, Refused, UsageError
from keys import enrol, nodecert, vault_jwt
from keys.enrol import Issued
from keys.names import new_key_name
from keys.secret import Secret
from keys.vault import VaultSession
from keys.vault_enrol import REVOKED, VaultEnrol, instance_of
from keys.vault_errors import VaultDenied, VaultError
from keys.vault_node import VaultNode
from slurm_hooks import link, wire
from slurm_hooks.enrolment import exchange
from tests.services.vault.conftest import patiently
from tests.testbed.enrol_world import ABROAD, FOREIGN, REGION, STRANGER, Cluster, Machine, ago
from tests.testbed.imds import pin
from tests.testbed.openbao import OpenBao
from tests.testbed.pki import CA

NUMBERS = itertools.count(1)
NODES = "secure-slurm-grants/data/_nodes"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ca: CA) -> Iterator[Cluster]:
    with OpenBao(tmp_path_factory.mktemp("bao-enrol"), ca) as bao:
        cluster = Cluster(bao, tmp_path_factory.mktemp("cluster"))
        assert cluster.init() == 0
        with cluster.serving():
            yield cluster


Boot = Callable[..., Machine]


@pytest.fixture
def boot(cluster: Cluster, tmp_path: Path) -> Iterator[Boot]:
    yield from _boot(cluster, tmp_path)


def _boot(cluster: Cluster, tmp_path: Path) -> Iterator[Boot]:
    """Start a machine: with a name and an instance id that nobody had before, unless they are given."""
    with ExitStack() as stack:

        def make(node: str = "", instance: str = "") -> Machine:
            number = next(NUMBERS)
            node, instance = node or f"n{number}", instance or f"i-{number:017x}"
            cluster.means(**{node: instance})
            return stack.enter_context(Machine(cluster, tmp_path / f"m{number}", node, instance))

        cluster.said.clear()
        yield make


def said(cluster: Cluster, event: str) -> dict[str, Any]:
    """The one line of that kind."""
    (fields,) = [fields for name, fields in cluster.said if name == event]
    return fields


def refused(machine: Machine, rule: str, words: str, **how: bool) -> None:
    with pytest.raises(Refused, match=words) as caught:
        machine.enrolment.once(**how)
    assert caught.value.rule == rule
    assert said(machine.cluster, "enrol.refused")["rule"] == rule
    machine.cluster.said.clear()


def from_elsewhere(cluster: Cluster, context: ssl.SSLContext, fields: dict[str, bytes | str]) -> dict[str, bytes]:
    """A request from another address than the machines have."""
    with (
        socket.create_connection(("127.0.0.1", cluster.port), 60, source_address=("127.0.0.9", 0)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(wire.encode({**fields, "nonce": wire.new_nonce()}))
        return wire.receive(connection, 120)


def renewal(cluster: Cluster, machine: Machine) -> tuple[ssl.SSLContext, dict[str, bytes | str]]:
    """TLS with what the machine has, and the request that belongs to it."""
    key, ca_file = machine.folder / "node.key", cluster.directory / "link-ca.crt"
    context = link.client_context(str(machine.folder / "node.crt"), str(key), str(ca_file))
    request = nodecert.new_request(key.read_bytes(), machine.node)
    return context, {"verb": "renew", "node": machine.node, "cluster": "test", "request": request}


# -- the documents: the first passes, no other does -------------------------------------------------------------------


def test_genuine(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    found = machine.enrolment.once()
    assert (found.cluster, found.node, found.instance) == ("test", machine.node, machine.instance)
    assert found.ends - found.begins <= 86400 + 60
    assert said(cluster, "node.enrolled")["result"] == "first"
    # the key is the node's own, and is nowhere else
    key = machine.folder / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert found.key == nodecert.key_digest(key.read_bytes())
    # and it is what Vault knows the node by: its own keys, and no other node's
    mine, others = new_key_name(machine.node, "test", "7"), new_key_name("n999", "test", "7")
    with cluster.world.head() as head, machine.vault() as vault:
        for name in (mine, others):
            head.create_key(name)
        secret, _ = vault.data_key(mine)
        assert len(secret) == 64
        with pytest.raises(VaultDenied):
            vault.data_key(others)


def test_forged(boot: Boot) -> None:
    machine = boot()
    machine.shows(signer=STRANGER)
    refused(machine, "node.place-proof", "not signed with the certificate that is pinned")
    assert machine.enrolment.held() is None


def test_forged_with_the_forgers_certificate_inside(boot: Boot) -> None:
    """What ``openssl smime -verify -noverify`` believes."""
    machine = boot()
    machine.shows(signer=STRANGER, embed=True)
    refused(machine, "node.place-proof", "not signed with the certificate that is pinned")


def test_replayed_with_another_key(cluster: Cluster, boot: Boot, tmp_path: Path) -> None:
    """A job that has read the document of its node, on that very node."""
    machine = boot()
    machine.enrolment.once()
    cluster.said.clear()
    thief = Machine(cluster, tmp_path / "thief", machine.node, machine.instance)
    # the very bytes: another launch is another document
    thief.imds.answer = machine.imds.answer
    with thief:
        refused(thief, "enrol.replayed", "used already, with another key")
    assert thief.enrolment.held() is None
    assert machine.enrolment.once().node == machine.node


def test_replayed_for_another_node(cluster: Cluster, boot: Boot, tmp_path: Path) -> None:
    """Refused even when the site says that the other node is this instance."""
    machine = boot()
    machine.enrolment.once()
    cluster.said.clear()
    thief = Machine(cluster, tmp_path / "thief", "n998", machine.instance)
    # the very bytes: another launch is another document
    thief.imds.answer = machine.imds.answer
    with thief:
        refused(thief, "enrol.instance", "names no instance for the node n998")
        cluster.means(n998=machine.instance)
        refused(thief, "enrol.replayed", f"the node name {machine.node}")


def test_replayed_from_another_address(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    key = nodecert.new_key()
    fields = {
        "verb": "enrol", "node": machine.node, "cluster": "test", "region": REGION,
        "request": nodecert.new_request(key, machine.node), "document": b"".join(machine.imds.answer.split()),
    }  # fmt: skip
    context = link.trusting_context(str(cluster.directory / "link-ca.crt"))
    answer = from_elsewhere(cluster, context, fields)
    assert (answer["verdict"], answer["rule"]) == (b"refuse", b"enrol.instance")
    assert b"is of 127.0.0.1, shown from 127.0.0.9" in answer["message"]
    # the same request from where the document is of
    answer = exchange(f"127.0.0.1:{cluster.port}", context, fields)
    assert answer["verdict"] == b"allow"


@pytest.mark.parametrize("claimed", [REGION, ABROAD])
def test_wrong_region(cluster: Cluster, boot: Boot, tmp_path: Path, claimed: str) -> None:
    """Whether the node says so or not, and even with the region's certificate pinned."""
    machine = boot()
    machine.shows(signer=FOREIGN, region=ABROAD)
    pin(cluster.directory / "ec2", ABROAD, FOREIGN)
    (cluster.directory / "place").write_text(f"{claimed}\n")
    try:
        if claimed == ABROAD:
            refused(machine, "enrol.region", "a region that enrol.regions does not have")
        else:
            refused(machine, "node.place-proof", "not signed with the certificate that is pinned for eu-central-1")
    finally:
        (cluster.directory / "place").write_text(f"{REGION}\n")


def test_wrong_account(boot: Boot) -> None:
    """Genuine, in the right region, and somebody else's."""
    machine = boot()
    machine.shows(accountId="999999999999")
    refused(machine, "node.place-proof", "another account")


def test_wrong_instance(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    cluster.means(**{machine.node: "i-0123456789abcdef9"})
    refused(machine, "enrol.instance", "is i-0123456789abcdef9, not i-")


def test_old(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    machine.shows(pendingTime=ago(hours=2))
    refused(machine, "enrol.old", "launched 2.0 hours ago and has not enrolled yet")
    assert cluster.world.bao.status("GET", f"{NODES}/{machine.node}")[0] == 404


def test_of_the_future(boot: Boot) -> None:
    machine = boot()
    machine.shows(pendingTime=ago(hours=-2))
    refused(machine, "node.place-proof", "of the future")


# -- what happens later -----------------------------------------------------------------------------------------------


def test_renewed_with_the_certificate_and_without_the_document(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    first = machine.enrolment.once()
    cluster.said.clear()
    machine.imds.status = 500
    second = machine.enrolment.once()
    assert second.serial != first.serial
    assert (second.key, second.instance) == (first.key, first.instance)
    assert said(cluster, "node.enrolled")["result"] == "renewed"
    kept = cluster.world.bao.request("GET", f"{NODES}/{machine.node}")["data"]["data"]
    assert [each.split(":")[0] for each in kept["issued"].split()] == [first.serial, second.serial]


def test_a_certificate_that_has_ended_needs_the_document_and_the_same_key(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    first = machine.enrolment.once()
    (machine.folder / "node.crt").unlink()
    # long after the launch: the key is what it is known by
    with cluster.serving(oldest=0.001):
        assert machine.enrolment.once().key == first.key
    assert cluster.said[-1][1]["result"] == "again"
    (machine.folder / "node.key").unlink()
    cluster.said.clear()
    with cluster.serving():
        refused(machine, "enrol.replayed", "another key")


def test_a_replaced_instance_loses_everything_at_once(cluster: Cluster, boot: Boot, tmp_path: Path) -> None:
    old = boot()
    old.shows(pendingTime=ago(minutes=30))
    for _ in range(2):
        old.enrolment.once()
    key = new_key_name(old.node, "test", "8")
    with cluster.world.head() as head:
        head.create_key(key)
    with old.vault() as vault:
        vault.data_key(key)
    cluster.said.clear()

    new = Machine(cluster, tmp_path / "new", old.node, "i-00000000000000abc")
    with new:
        # while the site does not say that it is the node, it is nobody
        refused(new, "enrol.instance", "not i-00000000000000abc")
        cluster.means(**{old.node: "i-00000000000000abc"})
        new.enrolment.once()
        assert said(cluster, "node.enrolled")["result"] == "replaced"
        cluster.said.clear()
        # the old one's certificates are still good by their dates, and open nothing
        assert old.enrolment.held() is not None
        with old.vault() as vault, pytest.raises(VaultDenied):
            vault.data_key(key)
        with new.vault() as vault:
            assert len(vault.data_key(key)[0]) == 64
        refused(old, "enrol.superseded", "is i-00000000000000abc by now")
        # nor does its document, should the site's word be its own again
        cluster.means(**{old.node: old.instance})
        refused(old, "enrol.superseded", "launched later", anew=True)


def test_two_that_are_replaced_at_the_same_moment(cluster: Cluster, boot: Boot) -> None:
    """The list of revoked certificates is replaced whole: the one that is given last must not be the shorter one."""
    first, second = boot(), boot()
    cluster.means(**{each.node: each.instance for each in (first, second)})
    keys = {each.node: new_key_name(each.node, "test", "8") for each in (first, second)}
    with cluster.world.head() as head:
        for name in keys.values():
            head.create_key(name)
    with VaultEnrol.from_site(cluster.site) as one, VaultEnrol.from_site(cluster.site) as other:
        held = {each.node: Issued(each.enrolment.once().serial, int(time.time()) + 3600) for each in (first, second)}
        call = one._session.call

        def slowly(action: str, request: Callable[[Any], Any]) -> dict[str, Any]:
            if action.startswith("take"):
                # between its signature and this, another head node does the same for another node
                one._session.call = call  # type: ignore[method-assign]
                other.revoke([held[second.node]], time.time())
            return call(action, request)

        one._session.call = slowly  # type: ignore[method-assign]
        one.revoke([held[first.node]], time.time())
    for each in (first, second):
        with each.vault() as vault, pytest.raises(VaultDenied):
            vault.data_key(keys[each.node])


def test_many_that_are_replaced_at_the_same_moment(cluster: Cluster) -> None:
    """Dynamic nodes come back under their names by the hundred: none is sent away because of the others."""
    ends = int(time.time()) + 3600
    with VaultEnrol.from_site(cluster.site) as vault, ThreadPoolExecutor(8) as pool:
        every = [Issued(f"{serial:x}", ends) for serial in range(16, 40)]
        list(pool.map(lambda one: vault.revoke([one], time.time()), every))
        kept = str((vault._read(REVOKED)[0] or {})["serials"]).split()
    assert {f"{one.serial}:{ends}" for one in every} <= set(kept)


def test_launched_again(cluster: Cluster, boot: Boot) -> None:
    """Stopped and started: the same instance, another launch, the key still on its disk or not."""
    machine = boot()
    machine.shows(pendingTime=ago(minutes=30))
    before = machine.imds.answer
    machine.enrolment.once()
    for file in ("node.key", "node.crt"):
        (machine.folder / file).unlink()
    cluster.said.clear()
    machine.shows()
    machine.enrolment.once()
    assert said(cluster, "node.enrolled")["result"] == "relaunched"
    cluster.said.clear()
    machine.imds.answer = before
    refused(machine, "enrol.superseded", "launched again", anew=True)


def test_renewed_without_pause(cluster: Cluster, boot: Boot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The node is refused before anything is signed, and its successor is not."""
    monkeypatch.setattr(enrol, "MOST_ISSUED", 2)
    machine = boot()
    machine.shows(pendingTime=ago(minutes=30))
    for _ in range(2):
        machine.enrolment.once()
    cluster.said.clear()
    for anew in (False, True):
        refused(machine, "enrol.often", "2 certificates that have not ended", anew=anew)
    with Machine(cluster, tmp_path / "new", machine.node, "i-00000000000000abd") as new:
        cluster.means(**{machine.node: new.instance})
        assert new.enrolment.once().instance == new.instance


def test_a_renewal_from_another_address(cluster: Cluster, boot: Boot) -> None:
    """Key and certificate, carried to another machine."""
    machine = boot()
    machine.enrolment.once()
    answer = from_elsewhere(cluster, *renewal(cluster, machine))
    assert (answer["verdict"], answer["rule"]) == (b"refuse", b"enrol.instance")


def test_a_renewal_for_another_node(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    machine.enrolment.once()
    context, fields = renewal(cluster, machine)
    others = nodecert.new_request(nodecert.new_key(), machine.node)
    for changes in ({"node": "n997"}, {"request": others}):
        answer = exchange(f"127.0.0.1:{cluster.port}", context, {**fields, **changes})
        assert (answer["verdict"], answer["rule"]) == (b"refuse", b"enrol.certificate")


def test_a_certificate_that_the_site_made_renews_nothing(cluster: Cluster, boot: Boot) -> None:
    """Of the CA that is trusted for the head node's certificate, for a client, with the node's name."""
    machine = boot()
    pair = cluster.ca.client(machine.node, machine.folder)
    context = link.client_context(str(pair.certificate), str(pair.private_key), str(cluster.directory / "link-ca.crt"))
    request = nodecert.new_request(pair.private_key.read_bytes(), machine.node)
    fields = {"verb": "renew", "node": machine.node, "cluster": "test", "request": request}
    answer = exchange(f"127.0.0.1:{cluster.port}", context, fields)
    assert (answer["verdict"], answer["rule"]) == (b"refuse", b"enrol.certificate")


def test_a_certificate_of_a_stranger_gets_no_connection(cluster: Cluster, boot: Boot, tmp_path: Path) -> None:
    machine = boot()
    pair = CA(tmp_path / "stranger").client(machine.node)
    context = link.client_context(str(pair.certificate), str(pair.private_key), str(cluster.directory / "link-ca.crt"))
    with pytest.raises(BackendUnavailable):
        exchange(f"127.0.0.1:{cluster.port}", context, {"verb": "renew", "node": machine.node, "cluster": "test"})
    assert not cluster.said


def test_a_node_gives_its_document_to_no_stranger(cluster: Cluster, boot: Boot, tmp_path: Path) -> None:
    """The daemon's certificate must be of the pinned CA, and a server's: another node's is not."""
    machine = boot()
    found = machine.enrolment.once()
    listening = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(machine.folder / "node.crt", machine.folder / "node.key")
    assert found.node == machine.node
    got: list[bytes] = []

    def pretend() -> None:
        connection, _ = listening.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as secured:
                got.append(secured.recv(100))
        except OSError:
            connection.close()

    thread = threading.Thread(target=pretend)
    thread.start()
    trusting = link.trusting_context(str(cluster.directory / "link-ca.crt"))
    with pytest.raises(BackendUnavailable, match="its certificate is refused"):
        exchange(f"127.0.0.1:{listening.getsockname()[1]}", trusting, {"verb": "enrol", "document": b"secret"})
    thread.join(20)
    listening.close()
    assert b"".join(got) == b""


# -- what Vault lets the daemon do ------------------------------------------------------------------------------------


def test_the_daemon_may_sign_and_remember_and_nothing_else(cluster: Cluster) -> None:
    with VaultEnrol.from_site(cluster.site) as vault:
        session = vault._session
        key = new_key_name("n1", "test", "9")
        for method, path, body in (
            ("post", f"secure-slurm-transit/keys/{key}", {"type": "aes256-gcm96"}),
            ("post", f"secure-slurm-transit/datakey/plaintext/{key}", {}),
            ("get", "secure-slurm-grants/data/n1/1", None),
            ("post", "secure-slurm-grants/data/n1/1", {"data": {}, "options": {"cas": 0}}),
            ("list", "secure-slurm-grants/metadata/", None),
            ("post", "secure-slurm-pki/root/generate/exported", {"common_name": "x"}),
            ("post", "secure-slurm-pki/issue/secure-slurm-node", {"common_name": "n1"}),
            ("post", "secure-slurm-pki/sign-verbatim", {"csr": "x"}),
            ("post", "secure-slurm-pki/roles/secure-slurm-node", {"allow_any_name": True}),
            ("post", "auth/cert/certs/secure-slurm-node", {"token_policies": ["root"]}),
            ("post", "auth/cert/crls/another-clusters", {"crl": "x"}),
        ):
            with pytest.raises(VaultDenied):
                session.call("try", lambda client, m=method, p=path, b=body: _send(client, m, p, b))


def _send(client: Any, method: str, path: str, body: dict[str, Any] | None) -> Any:
    call = getattr(client.adapter, method)
    return call(f"/v1/{path}", json=body) if body is not None else call(f"/v1/{path}")


@pytest.mark.parametrize(
    "body",
    [
        {"common_name": "vault.example.org"},
        {"common_name": "x1"},
        # within the nodes' pattern, and no host's name
        {"common_name": "n*"},
        {"common_name": "n+"},
        {"common_name": "n1_x"},
        {"common_name": "n1/x"},
        {"common_name": "n1 "},
        {"common_name": "n1,O=x"},
        {"uri_sans": "secure-slurm://other/n1/i-0123456789abcdef0"},
        {"alt_names": "head"},
        {"ip_sans": "127.0.0.1"},
        {"exclude_cn_from_sans": False},
    ],
)
def test_vault_signs_nothing_but_names_of_nodes(cluster: Cluster, body: dict[str, Any]) -> None:
    """What a daemon that was taken over could ask for."""
    good = {
        "csr": nodecert.new_request(nodecert.new_key(), "n1").decode(),
        "common_name": "n1",
        "exclude_cn_from_sans": True,
        "uri_sans": "secure-slurm://test/n1/i-0123456789abcdef0",
        "ttl": "86400s",
    }
    path = "/v1/secure-slurm-pki/sign/secure-slurm-node"
    with VaultEnrol.from_site(cluster.site) as vault:
        vault._session.call("sign", lambda client: client.adapter.post(path, json=good))
        with pytest.raises((VaultDenied, VaultError)):
            vault._session.call("sign", lambda client: client.adapter.post(path, json={**good, **body}))


def test_the_lifecycle_daemon_reads_and_cannot_change_what_is_remembered(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    machine.enrolment.once()
    with cluster.world.head() as head:
        assert machine.node not in {node for node, _ in head.list_grants()}
        session = head.session
        path = f"secure-slurm-grants/data/_nodes/{machine.node}"
        assert instance_of(session, "secure-slurm-grants", machine.node) == machine.instance
        assert instance_of(session, "secure-slurm-grants", "n998") == ""
        with pytest.raises(VaultDenied):
            session.call("write", lambda c: c.adapter.post(f"/v1/{path}", json={"data": {}, "options": {"cas": 1}}))
        with pytest.raises(VaultDenied):
            session.call("delete", lambda c: c.adapter.delete(f"/v1/{path.replace('/data/', '/metadata/')}"))


def test_vault_init_changes_nothing_when_run_again(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cluster.world.init() == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"unchanged"}
    assert cluster.world.init("--check") == 0


# -- many, and none --------------------------------------------------------------------------------------------------


def test_a_hundred_nodes_at_once(cluster: Cluster, tmp_path: Path) -> None:
    """Each gets its own; the server has few at a time, and who is turned away asks again."""
    names = {f"n5{number:03}": f"i-5{number:016x}" for number in range(100)}
    cluster.means(**names)

    def start(node: str) -> str:
        with Machine(cluster, tmp_path / node, node, names[node]) as machine:
            return patiently(machine.enrolment.once).instance

    with ThreadPoolExecutor(100) as pool:
        assert list(pool.map(start, names)) == list(names.values())


def test_vault_away_is_no_refusal(cluster: Cluster, boot: Boot) -> None:
    machine = boot()
    cluster.world.bao.seal()
    try:
        with pytest.raises(BackendUnavailable, match="cannot enrol just now"):
            machine.enrolment.once()
    finally:
        cluster.world.bao.unseal()
    assert machine.enrolment.once().node == machine.node


# -- tokens of the head node instead of certificates ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, ca: CA) -> Iterator[Cluster]:
    """A cluster whose nodes log in by jwt."""
    with OpenBao(tmp_path_factory.mktemp("bao-jwt"), ca) as bao:
        cluster = Cluster(bao, tmp_path_factory.mktemp("tokens"), method="jwt")
        assert cluster.init("--token-key-out", f"{cluster.directory}/token.key") == 0
        with cluster.serving():
            yield cluster


@pytest.fixture
def token_boot(tokens: Cluster, tmp_path: Path) -> Iterator[Boot]:
    yield from _boot(tokens, tmp_path)


def test_a_token_is_for_this_nodes_keys_alone(tokens: Cluster, token_boot: Boot) -> None:
    machine = token_boot()
    machine.enrolment.once()
    mine, others = new_key_name(machine.node, "test", "7"), new_key_name("n999", "test", "7")
    with tokens.world.head() as head, machine.vault() as vault:
        for name in (mine, others):
            head.create_key(name)
        assert len(vault.data_key(mine)[0]) == 64
        with pytest.raises(VaultDenied):
            vault.data_key(others)


def test_a_certificate_alone_opens_nothing_there(tokens: Cluster, token_boot: Boot) -> None:
    machine = token_boot()
    machine.enrolment.once()
    key = new_key_name(machine.node, "test", "8")
    by_certificate = attrs.evolve(machine.site.vault, node=attrs.evolve(machine.site.vault.node, method="cert"))
    with tokens.world.head() as head, VaultNode.from_site(by_certificate, machine.node) as vault:
        head.create_key(key)
        with pytest.raises(VaultDenied):
            vault.data_key(key)


def test_no_token_without_a_certificate_or_for_one_that_was_replaced(
    tokens: Cluster, token_boot: Boot, tmp_path: Path
) -> None:
    old = token_boot()
    with pytest.raises(BackendUnavailable, match="no certificate yet"):
        old.enrolment.token()
    context = link.trusting_context(str(tokens.directory / "link-ca.crt"))
    answer = exchange(f"127.0.0.1:{tokens.port}", context, {"verb": "token", "node": old.node, "cluster": "test"})
    assert (answer["verdict"], answer["rule"]) == (b"refuse", b"enrol.certificate")
    old.shows(pendingTime=ago(minutes=30))
    old.enrolment.once()
    assert old.enrolment.token()
    # for another node, with this one's certificate
    context, _ = renewal(tokens, old)
    answer = exchange(f"127.0.0.1:{tokens.port}", context, {"verb": "token", "node": "n999", "cluster": "test"})
    assert (answer["verdict"], answer["rule"]) == (b"refuse", b"enrol.certificate")
    answer = from_elsewhere(tokens, context, {"verb": "token", "node": old.node, "cluster": "test"})
    assert (answer["verdict"], answer["rule"]) == (b"refuse", b"enrol.instance")
    with Machine(tokens, tmp_path / "new", old.node, "i-00000000000000abd") as new:
        tokens.means(**{old.node: new.instance})
        new.enrolment.once()
        with old.vault() as vault, pytest.raises(VaultDenied, match="is i-00000000000000abd by now") as caught:
            vault.read_grant("1")
        assert caught.value.rule == "vault.login"
        with new.vault() as vault:
            assert vault.read_grant("1") is None


def test_tokens_that_vault_does_not_take(tokens: Cluster, token_boot: Boot) -> None:
    machine = token_boot()
    machine.enrolment.once()
    key = (tokens.directory / "token.key").read_bytes()
    good = vault_jwt.sign(key, "test", machine.node, machine.instance, time.time())
    bad = {
        "another key": vault_jwt.sign(nodecert.new_key(), "test", machine.node, machine.instance, time.time()),
        "another cluster": vault_jwt.sign(key, "other", machine.node, machine.instance, time.time()),
        "ended": vault_jwt.sign(key, "test", machine.node, machine.instance, time.time() - vault_jwt.LIFE - 15),
        "of the future": vault_jwt.sign(key, "test", machine.node, machine.instance, time.time() + 3600),
        "unsigned": good.rpartition(".")[0] + ".",
        "another name": _renamed(good),
        "no algorithm": "eyJhbGciOiJub25lIn0." + good.split(".")[1] + ".",
    }
    for what, text in bad.items():
        with token_login(machine, text) as vault:
            with pytest.raises(VaultDenied) as caught:
                vault.read_grant("1")
            assert caught.value.rule == "vault.login", what
    with token_login(machine, good) as vault:
        assert vault.read_grant("1") is None


def token_login(machine: Machine, token: str) -> VaultNode:
    vault = machine.site.vault
    login = vault_jwt.login(vault.node.jwt_mount, vault.node.jwt_role, lambda: token)
    return VaultNode.from_site(vault, machine.node, login)


def _renamed(token: str) -> str:
    head, claims, signature = token.split(".")
    text = base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
    found = {**json.loads(text), "sub": "n999"}
    return ".".join([head, base64.urlsafe_b64encode(json.dumps(found).encode()).decode().rstrip("="), signature])


def test_vault_init_again_keeps_the_key_of_the_tokens(tokens: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert tokens.world.init() == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"unchanged"}


# -- the instance's role instead of certificates ---------------------------------------------------------------------


ROLE = "parallelcluster-queue1-Role+x=,.@-_"


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory, ca: CA) -> Iterator[Cluster]:
    """OpenBao has no aws method built in: what a login by it leaves, an alias of that name, is made without one."""
    with OpenBao(tmp_path_factory.mktemp("bao-aws"), ca) as bao:
        cluster = Cluster(bao, tmp_path_factory.mktemp("roles"), method="aws")
        text = cluster.site_file.read_text().replace("enrol:\n", f"enrol:\n  instance_roles: ['{ROLE}']\n")
        cluster.site_file.write_text(text)
        with pytest.raises(UsageError, match="no auth method at aws/"):
            cluster.init()
        bao.request("POST", "sys/auth/aws", {"type": "userpass"})
        assert cluster.init() == 0
        with cluster.serving():
            yield cluster


def arn(instance: str) -> str:
    return f"arn:aws:sts::123456789012:assumed-role/{ROLE}/{instance}"


def with_role(machine: Machine, role: str = ROLE) -> Machine:
    path = "/latest/meta-data/iam/security-credentials/"
    secrets = {"AccessKeyId": "AKIDEXAMPLE", "SecretAccessKey": "secret", "Token": "token"}
    machine.imds.more = {path: f"{role}\n".encode(), path + role: json.dumps(secrets).encode()}
    return machine


@pytest.fixture
def role_boot(roles: Cluster, tmp_path: Path) -> Iterator[Boot]:
    yield from _boot(roles, tmp_path)


class Token:
    """What a login as an instance gives: a token with the nodes' policy, of the entity with that alias."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        bao = cluster.world.bao
        bao.request("POST", "auth/token/roles/aws-stand-in", {"allowed_entity_aliases": ["*"], "orphan": True})
        accessor = bao.request("GET", "sys/auth")["data"]["aws/"]["accessor"]
        found = bao.request(
            "POST", "identity/lookup/entity", {"alias_name": arn(instance), "alias_mount_accessor": accessor}
        )
        # a token cannot be made for an alias of another method, so the same entity gets one of the method for tokens
        tokens = bao.request("GET", "sys/auth")["data"]["token/"]["accessor"]
        entity = found["data"]["id"]
        bao.status(
            "POST", "identity/entity-alias", {"name": instance, "mount_accessor": tokens, "canonical_id": entity}
        )
        answer = bao.request(
            "POST",
            "auth/token/create/aws-stand-in",
            {"entity_alias": instance, "policies": ["secure-slurm-test-node"], "no_default_policy": True},
        )
        assert answer["auth"]["entity_id"] == entity
        self.vault = VaultNode(
            VaultSession(bao.url, str(bao.ca.certificate), 60, token=Secret(answer["auth"]["client_token"].encode())),
            "n1",
            transit_mount="secure-slurm-transit",
            grants_mount="secure-slurm-grants",
        )

    def may(self, key: str) -> bool:
        try:
            return len(self.vault.data_key(key)[0]) == 64
        except VaultDenied:
            return False


def test_an_instance_is_its_node_until_it_is_replaced(roles: Cluster, role_boot: Boot, tmp_path: Path) -> None:
    old = with_role(role_boot())
    old.shows(pendingTime=ago(minutes=30))
    old.enrolment.once()
    mine, others = new_key_name(old.node, "test", "7"), new_key_name("n999", "test", "7")
    with roles.world.head() as head:
        for name in (mine, others):
            head.create_key(name)
    token = Token(roles, old.instance)
    assert token.may(mine)
    assert not token.may(others)
    # a renewal names it again, and changes nothing
    old.enrolment.once()
    assert token.may(mine)
    with with_role(Machine(roles, tmp_path / "new", old.node, "i-00000000000000abe")) as new:
        roles.means(**{old.node: new.instance})
        new.enrolment.once()
        # the very token that it has: nothing waits for its end
        assert not token.may(mine)
        assert Token(roles, new.instance).may(mine)


def test_another_role_is_no_nodes(roles: Cluster, role_boot: Boot) -> None:
    machine = with_role(role_boot(), "admin")
    refused(machine, "enrol.role", "a role that enrol.instance_roles does not have")
    with_role(machine).enrolment.once()
    roles.said.clear()
    with_role(machine, "admin")
    refused(machine, "enrol.role", "another role than when it enrolled")


def test_the_daemon_cannot_give_itself_more(roles: Cluster) -> None:
    """It may say which node an instance of this mount is, and neither attach it to somebody nor give it a policy."""
    bao = roles.world.bao
    somebody = bao.request("POST", "identity/entity", {"name": "admin", "policies": ["root-like"]})["data"]["id"]
    cert = bao.request("GET", "sys/auth")["data"]["cert/"]["accessor"]
    aws = bao.request("GET", "sys/auth")["data"]["aws/"]["accessor"]
    with VaultEnrol.from_site(roles.site) as vault:
        for path, body in (
            ("identity/entity-alias", {"name": arn("i-1"), "mount_accessor": aws, "canonical_id": somebody}),
            ("identity/entity-alias", {"name": "n1", "mount_accessor": cert}),
            (f"identity/entity/id/{somebody}", {"policies": ["root"]}),
            ("identity/entity", {"name": "x", "policies": ["root"]}),
            ("identity/lookup/entity", {"id": somebody}),
        ):
            with pytest.raises(VaultDenied):
                vault._session.call("try", lambda client, p=path, b=body: _send(client, "post", p, b))
