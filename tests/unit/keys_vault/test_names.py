import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import Refused
from keys import names

KEY = "n1_test-17-0123456789abcdef"


@pytest.mark.parametrize("node", ["", "_", "a_b", "-a", ".a", "a/b", "a b", "a*", "a\n", "é", "a" * 64, "..", "{{x}}"])
def test_a_node_name_that_could_reach_further_is_refused(node: str) -> None:
    with pytest.raises(Refused) as refused:
        names.check_node(node)
    assert refused.value.rule == "names.node"


@pytest.mark.parametrize("job", ["", "0", "01", "-1", "1 ", "1\n", "1/2", "a", "٣", "1" * 21])
def test_a_job_id_that_is_not_canonical_is_refused(job: str) -> None:
    with pytest.raises(Refused, match="is not a job id"):
        names.grant_path("n1", job)


@pytest.mark.parametrize("nodes", [[], ["n1", "n1"], ["n1", "N1"], ["n1", ""]])
def test_nodes_that_vault_could_not_tell_apart_are_refused(nodes: list[str]) -> None:
    with pytest.raises(Refused):
        names.check_nodes(nodes)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "n1",
        "n1_test",
        "n1_test-17",
        KEY + "0",
        KEY[:-1],
        KEY.upper(),
        KEY + "\n",
        "n1__test-17-0123456789abcdef",
        "n1_test-017-0123456789abcdef",
        "n1_/test-17-0123456789abcdef",
        "../n1_test-17-0123456789abcdef",
    ],
)
def test_what_is_not_a_key_of_ours_is_refused(name: str) -> None:
    with pytest.raises(Refused) as refused:
        names.parse_key_name(name)
    assert refused.value.rule == "names.key"


def test_a_refusal_shows_no_control_characters() -> None:
    with pytest.raises(Refused) as refused:
        names.check_node("a\x1b[2J\n")
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)


NODES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,20}", fullmatch=True)
CLUSTERS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
JOBS = st.integers(1, 2**63).map(str)


@given(NODES, CLUSTERS, JOBS)
def test_a_key_name_can_be_taken_apart_again(node: str, cluster: str, job: str) -> None:
    name = names.new_key_name(node, cluster, job)
    assert names.parse_key_name(name)[:3] == (node, cluster, job)


@given(NODES, NODES, CLUSTERS, JOBS)
def test_the_policy_of_one_node_never_covers_the_key_of_another(mine: str, other: str, cluster: str, job: str) -> None:
    """The policy is the prefix ``<node>_``."""
    covered = names.new_key_name(other, cluster, job).startswith(mine + "_")
    assert covered == (mine == other)


def test_two_starts_of_a_job_never_share_a_name() -> None:
    assert len({names.new_key_name("n1", "test", "17") for _ in range(100)}) == 100
    assert len({names.new_incarnation() for _ in range(100)}) == 100


def test_the_grant_path() -> None:
    assert names.grant_path("n1", "17") == "n1/17"
    assert names.check_nodes(["n2", "n1"]) == ("n2", "n1")
