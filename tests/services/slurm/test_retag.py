"""The tag of a waiting job on a real slurmctld: root or an administrator change it, by a grant."""

from __future__ import annotations

import json
import pwd
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_hooks import breakglass_papers as papers
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot
from tests.services.slurm.controller import run, until
from tests.services.slurm.filtered import ETC, GROUP, LOG, POLICY, RUN, Filtered, rule

ASK, APPROVE = "cn=ask,dc=example,dc=org", "cn=approve,dc=example,dc=org"
GLASS = f'break_glass: {{requesters: ["{ASK}"], approvers: ["{APPROVE}"], longest: 8h}}\n'
FOLDER = Path("/var/lib/secure-slurm/break-glass")
SMALLER = "Extra=secure-slurm:class=phi;residency=eu;scratch=20971520"


class Glass(Filtered):
    """carol asks, alice approves; bob is Slurm's administrator, oper its operator."""

    def prepare(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        # nobody but root has to be the daemon that writes there
        FOLDER.chmod(0o755)
        super().prepare()
        run("sacctmgr", "-i", "modify", "user", "bob", "set", "adminlevel=Administrator")
        groups = {GROUP: {"alice"}, ASK: {"carol"}, APPROVE: {"alice"}}
        members = {dn: Group(dn, frozenset(users)) for dn, users in groups.items()}
        write_snapshot(RUN / "members.json", Snapshot(time.time(), "test", members))
        (ETC / "policy.yaml").write_text(POLICY + GLASS)

    def grant(self, user: str, job: str) -> str:
        """The id of a grant that is in force."""
        now = int(time.time())
        name = f"{user}-{job}"
        asked = papers.dump_request(
            papers.Request(
                id=name, by=uid("carol"), user=user, job=int(job), time=now, until=now + 600, reason="a test"
            )
        )
        approval = papers.Note(name, uid("alice"), papers.digest(asked), "a test")
        for kind, data in (("request", asked), ("approval", papers.dump_note(approval))):
            path = FOLDER / f".new-{kind}"
            path.write_bytes(data)
            path.chmod(0o640)
            path.rename(FOLDER / f"{name}.{kind}")
        until(lambda: ("glass.approved", name) in told(), f"grant {name}")
        return name

    def comment(self, job: str) -> str:
        """The whole admin comment, which has spaces."""
        line = self.people["root"].says(f"show job {job}")
        return re.sub(r" [A-Z]\w*=.*", "", line.partition(" AdminComment=")[2]).strip()


def uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def told() -> list[tuple[str, str]]:
    text = "".join(path.read_text() for path in (LOG / "decision").glob("*-break-glass.jsonl"))
    return [(line["event"], line.get("exemption", "")) for line in map(json.loads, text.splitlines())]


@pytest.fixture(scope="module")
def slurm(throw_away_root: None) -> Iterator[Glass]:
    with Glass() as controller:
        print(f"Slurm {controller.version()}")
        yield controller


def test_without_a_grant_nobody_changes_a_tag(slurm: Glass) -> None:
    job = slurm.submit("--hold", "--wrap=true")
    before = slurm.facts(job)
    for person in ("bob", "oper", "root"):
        assert rule(slurm.people[person].says(f"update JobId={job} {SMALLER}")) == "modify.tag", person
    assert slurm.facts(job) == before


@pytest.mark.parametrize("person", ["bob", "root"])
def test_who_has_a_grant(slurm: Glass, person: str) -> None:
    job = slurm.submit("--hold", "--wrap=true")
    grant = slurm.grant(person, job)
    other = next(each for each in ("bob", "oper", "root") if each != person)
    assert rule(slurm.people[other].says(f"update JobId={job} {SMALLER}")) == "modify.tag"
    if person != "root":
        assert rule(slurm.people[person].says(f"update JobId={job} {SMALLER}")) == "modify.record"
    assert slurm.people[person].says(f"update JobId={job} {SMALLER} AdminComment=x") == ""
    (after,) = slurm.facts(job)
    assert after["Extra"].endswith("scratch=20971520")
    comment = slurm.comment(job)
    assert " scratch=20971520 " in comment
    assert comment.endswith(f"tag changed by break-glass {grant}")
    # a second change stands on the same grant, and the job is whole for its owner
    assert slurm.people[person].says(f"update JobId={job} Extra= AdminComment=x") == ""
    (after,) = slurm.facts(job)
    assert "secure-slurm/" not in slurm.comment(job)
    assert after.get("Extra", "") in ("", "(null)")
    assert slurm.people["alice"].says(f"update JobId={job} Comment=mine") == ""


def test_whole_nodes_for_a_stronger_class(slurm: Glass) -> None:
    job = slurm.submit("--hold", "--wrap=true", extra="secure-slurm:class=internal;residency=eu")
    slurm.grant("root", job)
    assert slurm.people["root"].says(f"update JobId={job} {SMALLER}") == ""
    assert slurm.people["alice"].says(f"update JobId={job} Comment=mine") == ""


def test_an_operator_may_not(slurm: Glass) -> None:
    job = slurm.submit("--hold", "--wrap=true")
    slurm.grant("oper", job)
    before = slurm.facts(job)
    assert rule(slurm.people["oper"].says(f"update JobId={job} {SMALLER}")) == "modify.record"
    # slurmctld refuses it before it asks the filter, and stores nothing of it
    said = slurm.people["oper"].says(f"update JobId={job} {SMALLER} AdminComment=x")
    assert "denied" in said
    assert rule(said) == ""
    assert slurm.facts(job) == before
