"""``policy-tests.yaml``: what a site expects of its policy, case by case, and whether the real engine agrees.

Everybody in it is made up: a case says which groups its user is in, and no directory is asked.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import attrs

from admin.case_words import SET, SUBMIT, options_of
from conf import units
from conf.forms import Date, Form, kind
from conf.load import Finding, load
from conf.policy import Policy
from conf.quote import did_you_mean, one_of, quote
from conf.safefile import read_safely
from conf.tag import KEYS
from conf.yamlmarks import Where, parse
from slurm_hooks import trial
from slurm_hooks.dn import DnError, first_value, normalise
from slurm_hooks.engine import Decision
from slurm_hooks.trial import Trial

DEFAULT_NAME = "policy-tests.yaml"
_NOBODY = "nobody"

Raw = dict[str, Any]


def _mapping(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping, not {kind(value)}")
    return value


# looked into by _submit and _values: their keys are sbatch's words, 'class' among them, which no attribute can have
_Words = Annotated[Mapping[str, Any], Form(_mapping)]


@attrs.frozen(kw_only=True)
class Case:
    """One job and what is expected. ``user`` is one of ``users``; with neither ``user`` nor ``groups``: in no group.

    ``rule``: the id that the decision must have, required with ``refuse``. ``set``: what the accepted job must be like.
    """

    name: str
    user: str | None = None
    groups: tuple[str, ...] | None = None
    submit: _Words
    expect: Literal["allow", "refuse"]
    rule: str | None = None
    set: _Words | None = None


@attrs.frozen(kw_only=True)
class Suite:
    """The whole file. ``users``: groups by user. ``default_partition``: of a job that names none, as in slurm.conf.

    ``today``: the day on which the cases are judged, in UTC; None: the real one.
    """

    version: Literal[1]
    default_partition: str | None = None
    today: Date | None = None
    users: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    cases: tuple[Case, ...]


class Result(NamedTuple):
    """How a case went: ``line`` of the file, the engine's decision, and each thing that differs, in words."""

    case: Case
    line: int
    decision: Decision
    values: Mapping[str, str | bool]
    differences: tuple[str, ...]


def run(path: str, policy: Policy) -> list[Result]:
    """Every case of the file against the policy. ConfigError with every mistake in the file."""
    names = GroupNames(policy)
    suite, _ = load(path, Suite, lambda raw: _check(raw, names, policy.demanding_partitions()))
    marks = parse(read_safely(path))
    return [
        _judge(case, marks.key_mark(("cases", index)).line, suite, policy, names)
        for index, case in enumerate(suite.cases)
    ]


class GroupNames:
    """The policy's groups by each way to write them: in full, in any spelling, or by the first value alone."""

    def __init__(self, policy: Policy) -> None:
        self.short: dict[str, set[str]] = {}
        self._full: dict[str, str] = {}
        for dn in policy.groups():
            try:
                self._full[normalise(dn)] = dn
                self.short.setdefault(first_value(dn) or "", set()).add(dn)
            except DnError:
                self._full[dn] = dn

    def find(self, word: str) -> tuple[str, ...]:
        """The names, as the policy writes them, that ``word`` may mean: one, none or several."""
        try:
            full = self._full.get(normalise(word))
        except DnError:
            full = self._full.get(word)
        return (full,) if full else tuple(sorted(self.short.get(word, ())))

    def problem(self, word: str) -> str | None:
        """What is wrong with ``word`` as the name of a group, or None."""
        found = self.find(word)
        if not found:
            return f"no role of the policy names the group {quote(word)}{did_you_mean(word, self.short)}"
        return None if len(found) == 1 else f"{quote(word)} may be {one_of(found)}; write it out"


def _judge(case: Case, line: int, suite: Suite, policy: Policy, names: GroupNames) -> Result:
    words = suite.users[case.user] if case.user is not None else case.groups or ()
    user = case.user or _NOBODY
    snapshot = trial.members(user, [dn for word in words for dn in names.find(word)])
    asked = _trial(user, case.submit, suite.default_partition)
    decision = trial.decide(asked, policy, snapshot, now=_noon(suite.today))
    values = _values_of(asked, decision)
    return Result(case, line, decision, values, tuple(_differences(case, decision, values)))


def _noon(day: datetime.date | None) -> float:
    if day is None:
        return time.time()
    return datetime.datetime.combine(day, datetime.time(12), datetime.UTC).timestamp()


def _trial(user: str, submit: Mapping[str, Any], default_partition: str | None) -> Trial:
    tag = {key: submit[key] for key in KEYS if key in submit}
    if "scratch" in tag:
        # as secure-sbatch writes it
        tag["scratch"] = str(units.parse_size(tag["scratch"]))
    said = options_of(submit.get("options", ""), user, submit.get("env", {}))
    return Trial(
        user=user,
        tag=tag,
        fields=said.texts,
        numbers=said.numbers,
        texts={word: submit[word] for word in trial.TEXTS if word in submit},
        script=tuple(submit.get("script", ())),
        environment=said.environment,
        default_partition=default_partition,
        from_partition=submit.get("from_partition"),
        shared_by_force=submit.get("shared_by_force", False),
        het=submit.get("het", False),
        cron=submit.get("cron", False),
    )


def _values_of(asked: Trial, decision: Decision) -> dict[str, str | bool]:
    """What the accepted job would be like; nothing of a refused one."""
    if not decision.allowed:
        return {}
    found: dict[str, str | bool] = {
        word: decision.changes.get(trial.TEXTS[word], asked.text(trial.TEXTS[word]))
        for word in SET
        if word in trial.TEXTS
    }
    size = decision.tag.scratch if decision.tag else None
    found["scratch"] = units.format_size(size) if size else ""
    found["class"] = decision.tag.klass if decision.tag else ""
    found["residency"] = (decision.tag.residency or "") if decision.tag else ""
    found["time"] = decision.changes.get("time_limit", str(asked.numbers.get("time_limit", "")))
    found["nodes"] = decision.changes.get("max_nodes", str(asked.numbers.get("max_nodes", "")))
    found["exclusive"] = decision.changes.get("shared") == "0"
    found["requeue"] = decision.changes.get("requeue") == "1"
    return found


def _differences(case: Case, decision: Decision, values: Mapping[str, str | bool]) -> Iterator[str]:
    verdict = "allow" if decision.allowed else "refuse"
    if verdict != case.expect or case.rule not in (None, decision.rule):
        why = f": {decision.message}" if decision.message else ""
        yield f"expected {case.expect} {case.rule or ''}".rstrip() + f", got {verdict} {decision.rule}{why}"
        return
    for word, wanted in (case.set or {}).items():
        plain = units.format_size(units.parse_size(wanted)) if word == "scratch" and wanted else wanted
        if values[word] != plain:
            yield f"expected {word} {_shown(wanted)}, got {_shown(values[word])}"


def _shown(value: str | bool) -> str:
    return quote(value) if isinstance(value, str) else str(value).lower()


def _check(raw: Raw, names: GroupNames, demanding: tuple[str, ...]) -> Iterator[Finding]:
    """Every mistake that the shape alone does not show."""
    users = raw.get("users")
    users = users if isinstance(users, dict) else {}
    for user, words in users.items():
        yield from _groups(words, ("users", user), names)
    cases = raw.get("cases")
    seen: set[str] = set()
    for index, case in enumerate(cases if isinstance(cases, list) else []):
        if not isinstance(case, dict):
            continue
        where: Where = ("cases", index)
        name, user = case.get("name"), case.get("user")
        if isinstance(name, str):
            if name in seen:
                yield (*where, "name"), f"a case {quote(name)} is already there"
            seen.add(name)
        if isinstance(user, str) and user not in users:
            yield (*where, "user"), f"unknown user {quote(user)}{did_you_mean(user, users)}; add it to 'users'"
        if "user" in case and "groups" in case:
            yield (*where, "groups"), "user and groups in one case; the user's groups are under 'users'"
        yield from _groups(case.get("groups"), (*where, "groups"), names)
        yield from _values(case.get("submit"), (*where, "submit"), SUBMIT)
        yield from _origin(case.get("submit"), (*where, "submit", "from_partition"), demanding)
        yield from _values(case.get("set"), (*where, "set"), SET)
        yield from _expectation(case, where)


def _groups(words: object, where: Where, names: GroupNames) -> Iterator[Finding]:
    for index, word in enumerate(words if isinstance(words, list) else []):
        problem = names.problem(word) if isinstance(word, str) else None
        if problem:
            yield (*where, index), problem


def _origin(submit: object, where: Where, demanding: tuple[str, ...]) -> Iterator[Finding]:
    name = submit.get("from_partition") if isinstance(submit, dict) else None
    if isinstance(name, str) and name not in demanding:
        hint = did_you_mean(name, demanding)
        yield where, f"from_partition {quote(name)} is none that demands a tag, so it makes no difference{hint}"


def _expectation(case: Raw, where: Where) -> Iterator[Finding]:
    expect, rule = case.get("expect"), case.get("rule")
    if expect == "refuse" and "rule" not in case:
        yield (*where, "expect"), "'refuse' needs 'rule': a job that is refused for another reason proves nothing"
    if isinstance(rule, str) and expect in ("allow", "refuse") and rule.startswith("allow.") != (expect == "allow"):
        yield (*where, "rule"), f"the rule {quote(rule)} cannot be that of {quote(expect)}"
    if expect == "refuse" and "set" in case:
        yield (*where, "set"), "nothing is set on a job that is refused"


def _values(raw: object, where: Where, known: Mapping[str, Callable[[object], str | None]]) -> Iterator[Finding]:
    for key, value in raw.items() if isinstance(raw, dict) else ():
        if key not in known:
            hint = did_you_mean(key, known) or f"; known here: {one_of(sorted(known))}"
            yield (*where, key), f"unknown key {quote(key)}{hint}"
            continue
        problem = known[key](value)
        if problem:
            yield (*where, key), f"{key} {problem}"
