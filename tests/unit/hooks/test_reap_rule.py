"""The rule by which the reaper destroys: every reason not to, one by one, and nothing less than none of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_hooks import reap_rule
from slurm_hooks.reap_rule import APART, Remains, Seen, needs_slurm, rule
from slurm_hooks.slurmword import Word

START = "0123456789abcdef" * 2
DEADLINE = 45.0
NOW = 1000.0
OVER = Word("over", "CANCELLED")
# everything that an orphan is: set up long ago, called over long enough ago, and again now
REMAINS = Remains(start=START, begun=NOW - 100)
SEEN = Seen(START, NOW - 60, NOW - APART)


def kind(remains: Remains = REMAINS, word: Word | None = OVER, seen: Seen | None = SEEN, now: float = NOW) -> str:
    return rule(remains, word, seen, now, DEADLINE).kind


def test_an_orphan_is_destroyed() -> None:
    assert kind() == "orphan"
    assert kind(word=Word("unknown", "no such job")) == "orphan"


class TestDenied:
    def test_what_is_not_ours(self) -> None:
        assert kind(REMAINS._replace(foreign="its UUID is another")) == "foreign"

    def test_what_somebody_works_on(self) -> None:
        assert kind(REMAINS._replace(locked=True)) == "busy"

    @pytest.mark.parametrize("life", ["slurmstepd 7 runs it", "processes are in its cgroup"])
    def test_what_lives_here_whatever_slurm_says(self, life: str) -> None:
        for word in (OVER, Word("unknown", ""), Word("silent", ""), None):
            assert kind(REMAINS._replace(life=life), word) == "alive"

    def test_what_slurm_has(self) -> None:
        assert kind(word=Word("alive", "RUNNING")) == "alive"

    @pytest.mark.parametrize("word", [None, Word("silent", "no answer"), Word("", ""), Word("gone", "a new kind")])
    def test_what_slurm_says_nothing_of(self, word: Word | None) -> None:
        assert kind(word=word) == "silent"

    def test_the_first_word(self) -> None:
        for seen in (None, Seen(START, NOW - 60)):
            ruling = rule(REMAINS, OVER, seen, NOW, DEADLINE)
            assert (ruling.kind, ruling.wait) == ("suspect", APART)
            assert ruling.seen is not None
            assert ruling.seen.ended == NOW

    def test_a_second_word_too_soon(self) -> None:
        ruling = rule(REMAINS, OVER, SEEN._replace(ended=NOW - APART + 0.01), NOW, DEADLINE)
        assert ruling.kind == "suspect"
        assert 0 < ruling.wait < 0.02

    def test_a_set_up_that_may_be_under_way(self) -> None:
        ruling = rule(REMAINS._replace(begun=NOW - DEADLINE + 1), OVER, SEEN, NOW, DEADLINE)
        assert (ruling.kind, ruling.wait) == ("young", 1.0)
        # not known since when: since the first look
        assert kind(REMAINS._replace(begun=None), seen=SEEN._replace(first=NOW - DEADLINE + 1)) == "young"
        assert kind(REMAINS._replace(begun=None), seen=SEEN._replace(first=NOW - DEADLINE)) == "orphan"
        # a time of a boot that is not this one
        assert kind(REMAINS._replace(begun=NOW + 1), seen=SEEN._replace(first=NOW - DEADLINE + 1)) == "young"

    def test_without_a_journal_no_set_up_can_be_under_way(self) -> None:
        remains = Remains(start="", begun=-1.0)
        assert kind(remains, seen=Seen("", NOW - APART, NOW - APART)) == "orphan"

    def test_a_word_about_another_start(self) -> None:
        assert kind(seen=SEEN._replace(start="f" * 32)) == "suspect"

    @pytest.mark.parametrize("seen", [Seen(START, NOW + 1, NOW - 100), Seen(START, NOW - 60, NOW + 1)])
    def test_a_memory_of_the_future(self, seen: Seen) -> None:
        assert kind(seen=seen) == "suspect"

    def test_life_in_between_takes_the_first_word_back(self) -> None:
        for remains, word in ((REMAINS._replace(life="x"), None), (REMAINS, Word("alive", "RUNNING"))):
            ruling = rule(remains, word, SEEN, NOW, DEADLINE)
            assert kind(seen=ruling.seen, now=NOW + 5) == "suspect"

    def test_silence_in_between_is_no_second_word(self) -> None:
        first = rule(REMAINS, OVER, None, NOW, DEADLINE).seen
        silent = rule(REMAINS, Word("silent", ""), first, NOW + 30, DEADLINE)
        assert silent.kind == "silent"
        assert kind(seen=silent.seen, now=NOW + 40) == "orphan"


def test_slurm_is_asked_about_what_may_be_an_orphan_only() -> None:
    assert needs_slurm(REMAINS)
    for change in ({"locked": True}, {"life": "x"}, {"foreign": "x"}):
        assert not needs_slurm(REMAINS._replace(**change))


WORDS = st.sampled_from([None, *(Word(kind, "") for kind in ("alive", "over", "unknown", "silent", "?"))])


@given(st.lists(st.tuples(st.floats(0.0, 30.0), WORDS, st.booleans(), st.booleans()), max_size=12))
def test_destroyed_is_only_what_was_called_over_twice_with_no_life_between(
    looks: list[tuple[float, Word | None, bool, bool]],
) -> None:
    now, seen = 100.0, None
    over_since: float | None = None
    for pause, word, locked, lives in looks:
        now += pause
        remains = Remains(start=START, begun=50.0, locked=locked, life="x" if lives else "")
        ruling = rule(remains, word, seen, now, DEADLINE)
        good = word is not None and word.kind in ("over", "unknown") and not locked and not lives
        if ruling.kind == reap_rule.ORPHAN:
            assert good
            assert over_since is not None
            assert now - over_since >= APART
            assert now - 50.0 >= DEADLINE
        if (lives and not locked) or (word is not None and word.kind == "alive" and not locked):
            over_since = None
        elif good and over_since is None:
            over_since = now
        seen = ruling.seen
