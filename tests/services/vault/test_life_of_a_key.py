"""A key from its creation to the proof of its end, and who may do what with it meanwhile."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from conf.errors import Refused
from keys import lifecycle_keys
from keys.grant import Grant
from keys.names import new_incarnation, new_key_name
from keys.vault_errors import VaultConflict, VaultDenied, VaultError, VaultNotFound
from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from tests.testbed.vault_world import World

JOBS = itertools.count(1000)
TRANSIT = "secure-slurm-transit"
GRANTS = "secure-slurm-grants"


def start(nodes: tuple[str, ...] = ("n1", "n2")) -> list[Grant]:
    job, incarnation = str(next(JOBS)), new_incarnation()
    return [
        Grant(
            v="1",
            incarnation=incarnation,
            key=new_key_name(node, "test", job),
            cluster="test",
            job=job,
            uid="1001",
            user="alice",
            nodes=",".join(nodes),
            restarts="0",
            scratch="209715200",
            klass="phi",
            residency="eu",
            datasets="",
            created="1790000000",
        )
        for node in nodes
    ]


@pytest.fixture
def made(head: VaultHead) -> list[Grant]:
    """Keys and grants of a running job on n1 and n2."""
    grants = start()
    lifecycle_keys.create(head, grants, lambda: True)
    return grants


@pytest.fixture
def raw_head(head: VaultHead) -> Callable[..., dict[str, Any]]:
    """Any request with the head node's token, as one who has taken over the daemon could make it."""

    def request(method: str, path: str, **body: object) -> dict[str, Any]:
        json = {"json": body} if body else {}
        return head._session.call(path, lambda client: getattr(client.adapter, method)(f"/v1/{path}", **json))

    return request


@pytest.fixture
def raw_n1(n1: VaultNode) -> Callable[..., dict[str, Any]]:
    def request(method: str, path: str, **body: object) -> dict[str, Any]:
        json = {"json": body} if body else {}
        return n1._session.call(path, lambda client: getattr(client.adapter, method)(f"/v1/{path}", **json))

    return request


def test_the_life_of_a_job(head: VaultHead, n1: VaultNode, n2: VaultNode) -> None:
    grants = start()
    job = grants[0].job
    lifecycle_keys.create(head, grants, lambda: True)
    assert {("n1", job), ("n2", job)} <= set(head.list_grants())

    stored = n1.read_grant(job)
    assert stored is not None
    grant = Grant.from_dict(stored)
    grant.matches(job, "1001", "test", "0", ["n1", "n2"], node="n1")
    secret, wrapped = n1.data_key(grant.key)
    assert len(secret) == 64
    assert bytes(n1.unwrap(grant.key, wrapped).reveal()) == bytes(secret.reveal())
    again, _ = n1.data_key(grant.key)
    assert bytes(again.reveal()) != bytes(secret.reveal())

    evidence = lifecycle_keys.destroy(head, job, ["n1", "n2"])
    assert [(one.node, one.key, one.read_answer, one.error) for one in evidence] == [
        (grant.node, grant.key, 404, "") for grant in grants
    ]
    assert not head.key_exists(grant.key)
    assert n1.read_grant(job) is None
    with pytest.raises(VaultNotFound):
        n1.unwrap(grant.key, wrapped)
    with pytest.raises(VaultNotFound):
        n1.data_key(grant.key)
    assert not {("n1", job), ("n2", job)} & set(head.list_grants())
    assert all(one.done for one in lifecycle_keys.destroy(head, job, ["n1", "n2"]))
    # and on the server itself
    assert head.read_grant("n1", job) is None


def test_one_node_cannot_use_or_see_what_is_anothers(
    made: list[Grant], n1: VaultNode, n2: VaultNode, raw_n1: Callable[..., dict[str, Any]]
) -> None:
    _, other = made
    _, wrapped = n2.data_key(other.key)
    with pytest.raises(VaultDenied):
        n1.data_key(other.key)
    with pytest.raises(VaultDenied):
        n1.unwrap(other.key, wrapped)
    with pytest.raises(VaultDenied):
        raw_n1("get", f"{GRANTS}/data/n2/{other.job}")
    for path in (f"{GRANTS}/metadata/", f"{GRANTS}/metadata/n1/", f"{GRANTS}/metadata/n2/", f"{TRANSIT}/keys"):
        with pytest.raises(VaultDenied):
            raw_n1("list", path)


@pytest.mark.parametrize("other", ["n10", "n1-0", "n1.cluster", "n"])
def test_a_name_that_another_begins_with_opens_nothing_of_the_other(world: World, head: VaultHead, other: str) -> None:
    (theirs,) = start((other,))
    lifecycle_keys.create(head, [theirs], lambda: True)
    with world.node("n1") as n1, world.node(other) as owner:
        assert len(owner.data_key(theirs.key)[0]) == 64
        assert owner.read_grant(theirs.job) is not None
        with pytest.raises(VaultDenied):
            n1.data_key(theirs.key)
        path = f"/v1/{GRANTS}/data/{other}/{theirs.job}"
        with pytest.raises(VaultDenied):
            n1._session.call("read it", lambda client: client.adapter.get(path))


def test_names_that_differ_in_case_alone_are_one_node_to_vault(own_world: World) -> None:
    """Not wanted, but so: it is why keys.names.check_nodes refuses such nodes, and what the nodes' CA must not sign."""
    own_world.init("--node-name", "n*", "--node-name", "N*")
    (grant,) = start(("n1",))
    with own_world.head() as head, own_world.node("n1") as small, own_world.node("N1") as capital:
        lifecycle_keys.create(head, [grant], lambda: True)
        small.data_key(grant.key)
        assert len(capital.data_key(grant.key)[0]) == 64


def test_a_key_is_locked_and_unlocked(made: list[Grant], head: VaultHead, n1: VaultNode) -> None:
    """The job is frozen: its node gets nothing for the wrapped key that it has kept, until the head node says so."""
    key = made[0].key
    secret, wrapped = n1.data_key(key)
    for _ in range(2):
        for _ in range(2):
            head.lock_key(key)
        with pytest.raises(VaultError, match="its job is frozen"):
            n1.unwrap(key, wrapped)
        for _ in range(2):
            head.unlock_key(key)
        assert bytes(n1.unwrap(key, wrapped).reveal()) == bytes(secret.reveal())
    # locked or not, it can be deleted; and what is gone can be neither
    head.lock_key(key)
    assert all(one.done for one in lifecycle_keys.destroy(head, made[0].job, ["n1", "n2"]))
    for act in (head.lock_key, head.unlock_key):
        with pytest.raises(VaultNotFound):
            act(key)
    with pytest.raises(VaultNotFound):
        n1.unwrap(key, wrapped)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "{transit}/keys/{key}", {}),
        ("delete", "{transit}/keys/{key}", {}),
        ("post", "{transit}/keys/{key}", {"type": "aes256-gcm96"}),
        ("post", "{transit}/keys/{key}/config", {"deletion_allowed": True}),
        ("post", "{transit}/keys/{key}/config", {"min_decryption_version": "1"}),
        ("post", "{transit}/keys/{key}/rotate", {}),
        ("post", "{transit}/encrypt/{key}", {"plaintext": "YQ=="}),
        ("post", "{transit}/datakey/wrapped/{key}", {"bits": 512}),
        ("post", "{transit}/datakey/plaintext/{key}", {"bits": 512, "context": "YQ=="}),
        ("get", "{transit}/export/encryption-key/{key}", {}),
        ("post", "{grants}/data/n1/{job}", {"data": {}, "options": {"cas": 1}}),
        ("delete", "{grants}/metadata/n1/{job}", {}),
    ],
)
def test_a_node_can_do_nothing_else_with_its_own(
    made: list[Grant], raw_n1: Callable[..., dict[str, Any]], method: str, path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(VaultDenied):
        raw_n1(method, path.format(transit=TRANSIT, grants=GRANTS, key=made[0].key, job=made[0].job), **body)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("post", "datakey/plaintext/{key}", {"bits": 512}),
        ("post", "datakey/wrapped/{key}", {"bits": 512}),
        ("post", "decrypt/{key}", {"ciphertext": "vault:v1:AAAA"}),
        ("post", "encrypt/{key}", {"plaintext": "YQ=="}),
        ("post", "rewrap/{key}", {"ciphertext": "vault:v1:AAAA"}),
        ("post", "hmac/{key}", {"input": "YQ=="}),
        ("get", "export/encryption-key/{key}", {}),
        ("get", "export/encryption-key/{key}/1", {}),
        ("get", "backup/{key}", {}),
        ("post", "restore", {"backup": "AAAA"}),
        ("post", "keys/{key}/rotate", {"managed_key_name": "x"}),
        ("post", "keys/{key}/import", {"ciphertext": "AAAA"}),
        ("post", "keys/{key}/config", {"exportable": True}),
        ("post", "keys/{key}/config", {"allow_plaintext_backup": True}),
        ("post", "keys/{key}/config", {"deletion_allowed": True, "exportable": True}),
        ("post", "keys/{key}/config", {"deletion_allowed": False}),
        ("post", "keys/{key}/config", {"min_decryption_version": "3"}),
        ("post", "keys/{key}/config", {"min_decryption_version": "0"}),
        ("post", "keys/{key}/config", {"min_encryption_version": "1"}),
        ("post", "keys/{key}/config", {"auto_rotate_period": "1h"}),
        ("post", "keys/{key}/trim", {"min_available_version": "2"}),
        ("post", "keys/secure-slurm-certificates/rotate", {}),
        ("post", "keys/{new}", {"exportable": True}),
        ("post", "keys/{new}", {"allow_plaintext_backup": True}),
        ("post", "keys/{new}", {"type": "aes256-gcm96", "exportable": "true"}),
        ("post", "keys/{new}", {"type": "ed25519"}),
        ("post", "keys/{new}", {"derived": True}),
        ("list", "keys", {}),
    ],
)
def test_the_head_node_cannot_use_or_open_a_key(
    made: list[Grant], raw_head: Callable[..., dict[str, Any]], method: str, path: str, body: dict[str, Any]
) -> None:
    new = new_key_name("n1", "test", made[0].job)
    with pytest.raises(VaultDenied) as denied:
        raw_head(method, f"{TRANSIT}/" + path.format(key=made[0].key, new=new), **body)
    assert denied.value.rule == "vault.denied"


@pytest.mark.parametrize(
    "path",
    ["sys/mounts", "sys/policies/acl/root", "secret/data/x", "auth/token/create", "identity/entity/id", "sys/raw/x"],
)
@pytest.mark.parametrize("method", ["get", "list", "post"])
def test_the_head_node_can_do_nothing_elsewhere(
    raw_head: Callable[..., dict[str, Any]], method: str, path: str
) -> None:
    with pytest.raises(VaultDenied):
        raw_head(method, path, **({"a": "b"} if method == "post" else {}))


def test_the_key_that_is_made_is_the_one_that_was_meant(
    made: list[Grant], raw_head: Callable[..., dict[str, Any]]
) -> None:
    key = raw_head("get", f"{TRANSIT}/keys/{made[0].key}")["data"]
    assert (key["type"], key["exportable"], key["allow_plaintext_backup"]) == ("aes256-gcm96", False, False)
    assert key["deletion_allowed"] is True


def test_a_grant_is_written_once(head: VaultHead, made: list[Grant], raw_head: Callable[..., dict[str, Any]]) -> None:
    grant = made[0]
    with pytest.raises(VaultConflict):
        head.write_grant(grant.node, grant.job, grant.to_dict(), cas=0)
    with pytest.raises(VaultError):
        raw_head("post", f"{GRANTS}/data/n1/{grant.job}", data={})
    with pytest.raises(VaultConflict):
        lifecycle_keys.create(head, [grant], lambda: True)


def test_a_start_that_finds_another_one_leaves_it_alone(head: VaultHead, made: list[Grant], n1: VaultNode) -> None:
    job = made[0].job
    second = dataclasses.replace(made[0], incarnation=new_incarnation(), key=new_key_name("n1", "test", job))
    with pytest.raises(VaultConflict):
        lifecycle_keys.create(head, [second], lambda: True)
    assert n1.read_grant(job) == made[0].to_dict()
    assert head.key_exists(made[0].key)
    assert not head.key_exists(second.key)


@pytest.mark.parametrize("calls", range(8))
def test_a_job_that_ends_while_it_starts_leaves_nothing(head: VaultHead, calls: int) -> None:
    grants = start()
    answers = iter([True] * calls)
    with pytest.raises(Refused) as refused:
        lifecycle_keys.create(head, grants, lambda: next(answers, False))
    assert refused.value.rule == "keys.not_wanted"
    assert not any(head.key_exists(grant.key) for grant in grants)
    assert not {(grant.node, grant.job) for grant in grants} & set(head.list_grants())


def test_a_key_that_was_never_made_deletable_can_be_deleted(head: VaultHead) -> None:
    (grant,) = start(("n1",))
    head.create_key(grant.key)
    assert head.key_exists(grant.key)
    head.delete_key(grant.key)
    assert not head.key_exists(grant.key)
    head.delete_key(grant.key)
    with pytest.raises(VaultNotFound):
        head.allow_deletion(grant.key)


def test_a_wrapped_key_that_was_altered_or_is_anothers_is_not_unwrapped(made: list[Grant], n1: VaultNode) -> None:
    _, wrapped = n1.data_key(made[0].key)
    with pytest.raises(VaultError):
        n1.unwrap(made[0].key, wrapped[:-8] + "AAAAAAA=")
    with pytest.raises(VaultError):
        n1.unwrap(made[0].key, "nonsense")


def test_a_name_that_is_not_of_ours_is_never_sent(head: VaultHead, n1: VaultNode) -> None:
    for name in ("../../sys/mounts", "n1_x", "", "n1_test-1-0123456789abcdef/config"):
        for act in (head.create_key, head.delete_key, head.allow_deletion, head.key_exists, n1.data_key):
            with pytest.raises(Refused):
                act(name)
    for node, job in (("n1", "../n2/1"), ("../x", "1"), ("n1", "")):
        with pytest.raises(Refused):
            head.read_grant(node, job)


def test_many_nodes_at_once(head: VaultHead) -> None:
    grants = start(tuple(f"n{number}" for number in range(1, 25)))
    lifecycle_keys.create(head, grants, lambda: True)
    evidence = lifecycle_keys.destroy(head, grants[0].job, [grant.node for grant in grants])
    assert [one.read_answer for one in evidence] == [404] * len(grants)


def test_entries_that_are_not_grants_are_left_out_of_the_list(
    head: VaultHead, raw_head: Callable[..., dict[str, Any]]
) -> None:
    raw_head("post", f"{GRANTS}/data/_odd/17", data={}, options={"cas": 0})
    raw_head("post", f"{GRANTS}/data/n1/odd", data={}, options={"cas": 0})
    listed = head.list_grants()
    assert ("n1", "odd") not in listed
    assert not any(node == "_odd" for node, _ in listed)
    with pytest.raises(VaultDenied):
        raw_head("delete", f"{GRANTS}/data/n1/odd")
