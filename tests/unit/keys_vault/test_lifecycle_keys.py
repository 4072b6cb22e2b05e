"""The orchestration alone, with a head client that remembers; the same against a real server: tests/services/vault."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from conf.errors import BackendUnavailable, InternalError, Refused
from keys import lifecycle_keys
from keys.grant import Grant
from keys.names import new_incarnation, new_key_name
from keys.vault_errors import VaultConflict

JOB = "17"
NODES = ("n1", "n2", "n3")
WRITES = ("write_grant", "create_key", "allow_deletion")


class FakeHead:
    """Vault in a dict. ``fail[(operation, node)]`` is raised instead of, or with ``late`` after, the operation."""

    def __init__(self) -> None:
        self.keys: dict[str, bool] = {}
        self.grants: dict[tuple[str, str], dict[str, str]] = {}
        self.fail: dict[tuple[str, str], Exception] = {}
        self.late = False
        self.log: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def _do(self, operation: str, node: str, act: Callable[[], object]) -> None:
        with self.lock:
            self.log.append((operation, node))
            failure = self.fail.get((operation, node))
            if failure is None or self.late:
                act()
            if failure is not None:
                raise failure

    def create_key(self, name: str) -> None:
        self._do("create_key", name.partition("_")[0], lambda: self.keys.__setitem__(name, False))

    def allow_deletion(self, name: str) -> None:
        self._do("allow_deletion", name.partition("_")[0], lambda: self.keys.__setitem__(name, True))

    def delete_key(self, name: str) -> None:
        self._do("delete_key", name.partition("_")[0], lambda: self.keys.pop(name, None))

    def key_exists(self, name: str) -> bool:
        self._do("key_exists", name.partition("_")[0], lambda: None)
        return name in self.keys

    def write_grant(self, node: str, job: str, data: Mapping[str, str], cas: int = 0) -> None:
        def act() -> None:
            if (node, job) in self.grants:
                raise VaultConflict("something is already written there")
            self.grants[node, job] = dict(data)

        assert cas == 0
        self._do("write_grant", node, act)

    def read_grant(self, node: str, job: str) -> dict[str, Any] | None:
        self._do("read_grant", node, lambda: None)
        return self.grants.get((node, job))

    def delete_grant(self, node: str, job: str) -> None:
        def act() -> None:
            # the order that everything rests on
            assert self.grants.get((node, job), {}).get("key") not in self.keys
            self.grants.pop((node, job), None)

        self._do("delete_grant", node, act)

    @property
    def empty(self) -> bool:
        return not self.keys and not self.grants


def grants(nodes: tuple[str, ...] = NODES) -> list[Grant]:
    incarnation = new_incarnation()
    return [
        Grant(
            v="1",
            incarnation=incarnation,
            key=new_key_name(node, "test", JOB),
            cluster="test",
            job=JOB,
            uid="1001",
            user="alice",
            nodes=",".join(nodes),
            restarts="0",
            scratch="0",
            klass="phi",
            residency="",
            datasets="",
            created="1790000000",
        )
        for node in nodes
    ]


@pytest.fixture
def head() -> FakeHead:
    return FakeHead()


def wanted_until(calls: int) -> Callable[[], bool]:
    """Still wanted the first ``calls`` times that it is asked."""
    answers: Iterator[bool] = iter([True] * calls)
    return lambda: next(answers, False)


@pytest.mark.parametrize("calls", range(4))
def test_a_job_that_ends_after_any_write_leaves_nothing(head: FakeHead, calls: int) -> None:
    made, told = grants(("n1",)), list[lifecycle_keys.Evidence]()
    with pytest.raises(Refused) as refused:
        lifecycle_keys.create(head, made, wanted_until(calls), told.append)
    assert refused.value.rule == "keys.not_wanted"
    assert head.empty
    assert [(one.key, one.read_answer) for one in told] == [(made[0].key, 404)]
    assert [operation for operation, _ in head.log if operation in WRITES] == list(WRITES[:calls])


@pytest.mark.parametrize("calls", range(12))
def test_the_same_with_several_nodes_in_parallel(head: FakeHead, calls: int) -> None:
    with pytest.raises(Refused):
        lifecycle_keys.create(head, grants(), wanted_until(calls))
    assert head.empty


@pytest.mark.parametrize("answer", [None, 0, 1, "yes"])
def test_anything_but_true_means_not_wanted(head: FakeHead, answer: object) -> None:
    with pytest.raises(Refused):
        lifecycle_keys.create(head, grants(), lambda: answer)  # type: ignore[arg-type, return-value]
    assert head.empty


def test_a_question_that_fails_means_not_wanted(head: FakeHead) -> None:
    def broken() -> bool:
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError):
        lifecycle_keys.create(head, grants(), broken)
    assert head.empty


@pytest.mark.parametrize("error", [InternalError("broken"), Refused("vault.denied", "no"), ValueError("defect")])
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("operation", WRITES)
def test_a_write_that_fails_on_one_node_leaves_nothing_on_any(
    head: FakeHead, operation: str, node: str, error: Exception
) -> None:
    head.fail[operation, node] = error
    with pytest.raises(type(error)):
        lifecycle_keys.create(head, grants(), lambda: True)
    assert head.empty


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("operation", ["write_grant", "allow_deletion"])
def test_a_write_without_an_answer_is_taken_back_too(head: FakeHead, operation: str, late: bool) -> None:
    head.fail[operation, "n2"] = BackendUnavailable("no answer")
    head.late = late
    with pytest.raises(BackendUnavailable):
        lifecycle_keys.create(head, grants(), lambda: True)
    assert head.empty


@pytest.mark.parametrize("late", [False, True])
def test_a_key_whose_creation_was_not_answered_may_yet_appear_so_its_grant_stays(head: FakeHead, late: bool) -> None:
    head.fail["create_key", "n2"] = BackendUnavailable("no answer")
    head.late = late
    told: list[lifecycle_keys.Evidence] = []
    with pytest.raises(BackendUnavailable):
        lifecycle_keys.create(head, grants(), lambda: True, told.append)
    assert not head.keys
    assert list(head.grants) == [("n2", JOB)]
    # what may yet appear is not told as gone
    assert "n2" not in [one.node for one in told]
    assert all(evidence.done for evidence in lifecycle_keys.destroy(head, JOB, NODES))
    assert head.empty


def test_another_start_is_not_touched_when_its_grant_is_in_the_way(head: FakeHead) -> None:
    first = grants()
    lifecycle_keys.create(head, first, lambda: True)
    before = dict(head.keys), dict(head.grants)
    with pytest.raises(VaultConflict):
        lifecycle_keys.create(head, grants(), lambda: True)
    assert (head.keys, head.grants) == before


def test_what_could_not_be_taken_back_is_said_and_can_be_repeated(head: FakeHead) -> None:
    head.fail["allow_deletion", "n1"] = InternalError("broken")
    head.fail["delete_key", "n1"] = BackendUnavailable("gone away")
    told: list[lifecycle_keys.Evidence] = []
    with pytest.raises(InternalError) as raised:
        lifecycle_keys.create(head, grants(), lambda: True, told.append)
    assert "n1" not in [one.node for one in told]
    assert any("n1" in note for note in raised.value.__notes__)
    assert list(head.grants) == [("n1", JOB)]
    head.fail.clear()
    assert all(evidence.done for evidence in lifecycle_keys.destroy(head, JOB, ["n1"]))
    assert head.empty


def test_a_key_that_vault_was_never_asked_for_is_told_though_vault_is_away(head: FakeHead) -> None:
    """Its grant could not be written, so no reaper will ever look for it."""
    made, told = grants(("n1",)), list[lifecycle_keys.Evidence]()
    for operation in ("write_grant", "delete_key"):
        head.fail[operation, "n1"] = BackendUnavailable("sealed")
    with pytest.raises(BackendUnavailable):
        lifecycle_keys.create(head, made, lambda: True, told.append)
    assert [(one.key, one.read_answer) for one in told] == [(made[0].key, 0)]


def test_no_nodes_and_mixed_starts_are_refused(head: FakeHead) -> None:
    with pytest.raises(Refused):
        lifecycle_keys.create(head, [], lambda: True)
    with pytest.raises(InternalError):
        lifecycle_keys.create(head, [*grants(("n1",)), *grants(("n2",))], lambda: True)
    one = grants(("n1",))
    with pytest.raises(Refused):
        lifecycle_keys.create(head, one * 2, lambda: True)
    assert not head.log


def test_every_node_gets_its_grant_before_its_key(head: FakeHead) -> None:
    lifecycle_keys.create(head, grants(), lambda: True)
    assert set(head.keys.values()) == {True}
    assert len(head.keys) == len(head.grants) == len(NODES)
    for node in NODES:
        assert [operation for operation, where in head.log if where == node] == list(WRITES)


def test_the_end_is_proved_for_each_node(head: FakeHead) -> None:
    made = grants()
    lifecycle_keys.create(head, made, lambda: True)
    head.log.clear()
    evidence = lifecycle_keys.destroy(head, JOB, NODES)
    assert head.empty
    assert [(one.node, one.key, one.read_answer, one.error) for one in evidence] == [
        (grant.node, grant.key, 404, "") for grant in made
    ]
    assert all(one.at.endswith("Z") for one in evidence)
    for node in NODES:
        order = [operation for operation, where in head.log if where == node]
        assert order == ["read_grant", "delete_key", "key_exists", "delete_grant"]


def test_a_second_end_changes_nothing_and_can_still_prove_absence(head: FakeHead) -> None:
    made = grants()
    lifecycle_keys.create(head, made, lambda: True)
    lifecycle_keys.destroy(head, JOB, NODES)
    assert all(one.done and not one.key for one in lifecycle_keys.destroy(head, JOB, NODES))
    known = {grant.node: grant.key for grant in made}
    assert all(one.done and one.read_answer == 404 for one in lifecycle_keys.destroy(head, JOB, NODES, keys=known))


@pytest.mark.parametrize("operation", ["read_grant", "delete_key", "key_exists", "delete_grant"])
def test_an_end_that_fails_on_one_node_is_told_and_does_not_stop_the_others(head: FakeHead, operation: str) -> None:
    lifecycle_keys.create(head, grants(), lambda: True)
    head.fail[operation, "n2"] = BackendUnavailable("gone away")
    evidence = {one.node: one for one in lifecycle_keys.destroy(head, JOB, NODES)}
    assert not evidence["n2"].done
    assert evidence["n1"].done
    assert evidence["n3"].done
    assert list(head.grants) == [("n2", JOB)]
    head.fail.clear()
    assert all(one.done for one in lifecycle_keys.destroy(head, JOB, NODES))
    assert head.empty


def test_a_defect_on_one_node_does_not_keep_the_keys_of_the_others_alive(head: FakeHead) -> None:
    lifecycle_keys.create(head, grants(), lambda: True)
    head.fail["delete_key", "n1"] = ZeroDivisionError("secret text")
    evidence = lifecycle_keys.destroy(head, JOB, NODES)
    assert [one.error for one in evidence] == ["defect: ZeroDivisionError", "", ""]
    assert len(head.keys) == 1


def test_a_key_that_can_still_be_read_is_not_called_destroyed(head: FakeHead) -> None:
    lifecycle_keys.create(head, grants(("n1",)), lambda: True)
    head.delete_key = lambda name: None  # type: ignore[method-assign]
    (evidence,) = lifecycle_keys.destroy(head, JOB, ["n1"])
    assert evidence.read_answer == 0
    assert "can still be read" in evidence.error
    assert head.grants


def test_a_node_that_the_job_lost_on_its_way_is_not_forgotten(head: FakeHead) -> None:
    made = grants()
    lifecycle_keys.create(head, made, lambda: True)
    evidence = lifecycle_keys.destroy(head, JOB, ["n1"])
    assert head.empty
    assert [(one.node, one.key, one.read_answer) for one in evidence] == [
        (grant.node, grant.key, 404) for grant in made
    ]
    assert [one.node for one in lifecycle_keys.destroy(head, JOB, ["n1"])] == ["n1"]


@pytest.mark.parametrize("operation", ["read_grant", "delete_key", "key_exists", "delete_grant"])
def test_a_lost_node_that_has_to_wait_is_found_again(head: FakeHead, operation: str) -> None:
    lifecycle_keys.create(head, grants(), lambda: True)
    head.fail[operation, "n2"] = BackendUnavailable("gone away")
    evidence = {one.node: one for one in lifecycle_keys.destroy(head, JOB, ["n1"])}
    assert not evidence["n2"].done
    assert evidence["n1"].read_answer == evidence["n3"].read_answer == 404
    assert {node for node, _ in head.grants} == {"n1", "n2"}
    head.fail.clear()
    assert all(one.done for one in lifecycle_keys.destroy(head, JOB, ["n1"]))
    assert head.empty


def test_a_lost_node_that_a_later_start_has_is_left_alone(head: FakeHead) -> None:
    lifecycle_keys.create(head, grants(("n1", "n2")), lambda: True)
    lifecycle_keys.destroy(head, JOB, ["n1", "n2"])
    stale, later = grants(("n1", "n2"))[0], grants(("n2",))
    lifecycle_keys.create(head, later, lambda: True)
    head.write_grant("n1", JOB, stale.to_dict())
    assert all(one.done for one in lifecycle_keys.destroy(head, JOB, ["n1"]))
    assert set(head.keys) == {later[0].key}
    assert list(head.grants) == [("n2", JOB)]


@pytest.mark.parametrize("nodes", [None, 5, "", "n1,,../x,a_b", ["n2"]])
def test_what_a_damaged_grant_names_is_not_followed(head: FakeHead, nodes: object) -> None:
    name = new_key_name("n1", "test", JOB)
    head.keys[name] = True
    head.grants["n1", JOB] = {"key": name, "incarnation": new_incarnation(), "nodes": nodes}  # type: ignore[dict-item]
    (evidence,) = lifecycle_keys.destroy(head, JOB, ["n1"])
    assert evidence.done
    assert head.empty


def test_a_later_start_survives_the_end_of_an_earlier_one(head: FakeHead) -> None:
    earlier, later = grants(), grants()
    lifecycle_keys.create(head, later, lambda: True)
    known = {grant.node: grant.key for grant in earlier}
    evidence = lifecycle_keys.destroy(head, JOB, NODES, incarnation=earlier[0].incarnation, keys=known)
    assert [(one.key, one.read_answer) for one in evidence] == [(grant.key, 404) for grant in earlier]
    assert set(head.keys) == {grant.key for grant in later}
    assert len(head.grants) == len(NODES)


@pytest.mark.parametrize("key", ["n2_test-17-0123456789abcdef", "n1_test-18-0123456789abcdef", "../x", "", 5, None])
def test_a_grant_that_names_a_key_of_something_else_gets_nothing_deleted(head: FakeHead, key: object) -> None:
    head.keys["n2_test-17-0123456789abcdef"] = True
    head.grants["n1", JOB] = {"key": key}  # type: ignore[dict-item]
    (evidence,) = lifecycle_keys.destroy(head, JOB, ["n1"])
    assert not evidence.done
    assert head.keys
    assert head.grants


def test_a_damaged_grant_does_not_save_its_key(head: FakeHead) -> None:
    name = new_key_name("n1", "test", JOB)
    head.keys[name] = True
    head.grants["n1", JOB] = {"key": name, "uid": "?"}
    (evidence,) = lifecycle_keys.destroy(head, JOB, ["n1"])
    assert evidence.done
    assert head.empty


def test_a_grant_that_cannot_be_read_does_not_save_a_key_that_is_known(head: FakeHead) -> None:
    (grant,) = grants(("n1",))
    lifecycle_keys.create(head, [grant], lambda: True)
    head.fail["read_grant", "n1"] = InternalError("deleted version")
    (evidence,) = lifecycle_keys.destroy(head, JOB, ["n1"], keys={"n1": grant.key})
    assert (evidence.read_answer, evidence.done) == (404, False)
    assert not head.keys


@pytest.mark.parametrize(
    ("job", "nodes", "incarnation"), [("0", ["n1"], None), ("17", [], None), ("17", ["a_b"], None), ("17", ["n1"], "x")]
)
def test_a_question_that_makes_no_sense_is_refused(
    head: FakeHead, job: str, nodes: list[str], incarnation: str | None
) -> None:
    with pytest.raises(Refused):
        lifecycle_keys.destroy(head, job, nodes, incarnation=incarnation)
    assert not head.log


def test_one_node_alone_while_the_job_goes_on(head: FakeHead) -> None:
    lost, *others = made = grants()
    lifecycle_keys.create(head, made, lambda: True)
    (evidence,) = lifecycle_keys.destroy(head, lost.job, [lost.node], alone=True)

    assert (evidence.node, evidence.key, evidence.read_answer, evidence.done) == (lost.node, lost.key, 404, True)
    assert all(head.key_exists(grant.key) and head.read_grant(grant.node, grant.job) for grant in others)
