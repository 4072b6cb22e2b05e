"""Hosts that EC2 calls by their address: which node each is, and what follows for jobs that are submitted there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import attrs
import pytest

from conf.errors import BackendUnavailable
from conf.tag import Tag
from slurm_hooks import hostnames, running
from slurm_hooks.filters import judge_tag
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import Allow, Context, Deny
from tests.unit.decision.conftest import make_policy

# as sinfo wrote it for nodes that ResumeProgram has told slurmctld about, and one that is powered down
SINFO = """\
phi-dy-small-1|ip-10-0-0-5|10.0.0.5
phi-dy-small-1|ip-10-0-0-5|10.0.0.5
phi-dy-small-2|phi-dy-small-2|phi-dy-small-2
open-dy-big-1|i-0123456789abcdef0|10.0.0.7
"""
TABLE = {name: tuple(nodes) for name, nodes in hostnames.read_sinfo(SINFO).items()}
PHI = Tag("phi", "eu", 1024)
JOB = SubmitJob(
    submit_uid=1001,
    user_id=1001,
    user_name="alice",
    strings={},
    demand_nodes={"phi": "phi-dy-small-[1-2]"},
    partitions=("open",),
)
INSIDE = {"open-dy-big-1": (running.Inside(7, 1001, PHI),)}


@pytest.fixture
def context() -> Context:
    return Context(make_policy(), hosts=TABLE)


def verdict(context: Context, host: str, tag: Tag | None = None) -> Allow | Deny:
    return judge_tag.inherited_tag(attrs.evolve(JOB, alloc_node=host, tag=tag), context)


def test_the_table() -> None:
    assert TABLE == {
        "ip-10-0-0-5": ("phi-dy-small-1",),
        "10.0.0.5": ("phi-dy-small-1",),
        "i-0123456789abcdef0": ("open-dy-big-1",),
        "10.0.0.7": ("open-dy-big-1",),
    }


@pytest.mark.parametrize("text", ["", "\n", "n1|n1\n", "n1 n1 n1\n", SINFO + "slurm_load_node: error\n", "n/1|a|b\n"])
def test_an_answer_that_is_none(text: str) -> None:
    with pytest.raises(BackendUnavailable):
        hostnames.read_sinfo(text)


@pytest.mark.parametrize("host", ["ip-10-0-0-5", "IP-10-0-0-5.eu-west-1.compute.internal", "ip-10-0-0-5.ec2.internal"])
def test_a_protected_node_by_the_name_that_reverse_dns_has(context: Context, host: str) -> None:
    said = verdict(context, host)

    assert isinstance(said, Deny)
    assert said.rule == "tag.inherit"
    assert "node of partition 'phi'" in said.message
    assert "reverse DNS" not in said.advice


def test_by_its_address_alone(context: Context) -> None:
    """DisableManagedDns without UseEc2Hostnames: NodeHostName stays the node's, NodeAddr is the instance's."""
    hosts = {"10.0.0.5": ("phi-dy-small-1",)}
    assert isinstance(verdict(context._replace(hosts=hosts), "ip-10-0-0-5"), Deny)


@pytest.mark.parametrize("host", ["ip-10-0-0-9", "ip-10-0-0-7", "login1", "i-0123456789abcdef1"])
def test_a_login_node_and_one_of_an_open_queue(context: Context, host: str) -> None:
    assert isinstance(verdict(context, host), Allow)


@pytest.mark.parametrize("host", ["ip-10-0-0-9", "i-0123456789abcdef0", "ip-10-0-0-5.ec2.internal"])
def test_while_nobody_has_said_it_may_be_any_node(context: Context, host: str) -> None:
    said = verdict(context._replace(hosts=None), host)

    assert isinstance(said, Deny)
    assert "lifecycled" in said.advice
    assert repr(host) in said.message


@pytest.mark.parametrize("host", ["ip-10-0-0-7", "i-0123456789abcdef0.ec2.internal", "open-dy-big-1"])
def test_beside_a_tagged_job_of_the_same_user(context: Context, host: str) -> None:
    said = verdict(context._replace(running=INSIDE), host)

    assert isinstance(said, Deny)
    assert "job 7" in said.message
    assert isinstance(verdict(context._replace(running=INSIDE), "ip-10-0-0-9"), Allow)


def test_beside_one_on_any_node_while_nobody_has_said(context: Context) -> None:
    nobody = context._replace(running=INSIDE, hosts=None)
    said = judge_tag.inherited_tag(attrs.evolve(JOB, alloc_node="ip-10-0-0-9", tag=None, demand_nodes={}), nobody)

    assert isinstance(said, Deny)
    assert "job 7" in said.message


class Slurm:
    def __init__(self, text: str = SINFO) -> None:
        self.text = text
        self.asked = 0

    def hosts(self) -> dict[str, list[str]]:
        self.asked += 1
        return hostnames.read_sinfo(self.text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o750)
    return tmp_path


def read(folder: Path) -> hostnames.Hosts | None:
    reader = running.Running(str(folder), os.geteuid())
    reader.look()
    return reader.hosts


def test_from_one_daemon_to_the_other(folder: Path) -> None:
    assert read(folder) is None
    hostnames.Table(str(folder), Slurm().hosts, lambda: True).look()

    assert read(folder) == TABLE
    assert (folder / hostnames.FILE).stat().st_mode & 0o777 == 0o640
    assert running.known(str(folder)) == {}


def test_a_table_that_stays_the_same_is_not_written_again(folder: Path) -> None:
    table = hostnames.Table(str(folder), Slurm().hosts, lambda: True)
    table.look()
    before = (folder / hostnames.FILE).stat().st_ino
    table.look()

    assert (folder / hostnames.FILE).stat().st_ino == before


def test_what_cannot_be_read_leaves_the_last_table(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    slurm = Slurm()
    table = hostnames.Table(str(folder), slurm.hosts, lambda: True)
    table.look()
    slurm.text = ""
    table.look()
    table.look()

    assert read(folder) == TABLE
    assert caplog.text.count("stays as it was read last") == 1


def test_what_cannot_be_read_for_long_leaves_none(folder: Path) -> None:
    """Secured jobs go on starting, and on instances that the last table does not know."""
    slurm, now = Slurm(), [1000.0]
    reader = running.Running(str(folder), os.geteuid())
    table = hostnames.Table(str(folder), slurm.hosts, lambda: True, lambda: now[0])
    table.look()
    reader.look()
    assert reader.hosts == TABLE

    slurm.text = SINFO + "n/1|a|b\n"
    now[0] += hostnames.KEEP - 1
    table.look()
    reader.look()
    assert reader.hosts == TABLE
    now[0] += 2
    for _ in range(2):
        table.look()
    reader.look()
    assert reader.hosts is None

    slurm.text = SINFO
    table.look()
    reader.look()
    assert reader.hosts == TABLE


def test_the_one_that_stands_by_takes_nothing_away(folder: Path) -> None:
    now, acts, slurm = [1000.0], [True], Slurm()
    table = hostnames.Table(str(folder), slurm.hosts, lambda: acts[0], lambda: now[0])
    table.look()
    acts[0] = False
    now[0] += 10 * hostnames.KEEP
    table.look()
    # and when its turn comes it has its time
    acts[0], slurm.text = True, ""
    table.look()
    assert read(folder) == TABLE


def test_a_damaged_table_and_one_of_somebody_else(folder: Path) -> None:
    (folder / hostnames.FILE).write_text('["no table"]')
    assert read(folder) is None
    # nor does what was read before count any more
    (folder / hostnames.FILE).unlink()
    hostnames.write(str(folder), {"ip-10-0-0-5": ["n1"]})
    reader = running.Running(str(folder), os.geteuid())
    reader.look()
    assert reader.hosts == {"ip-10-0-0-5": ("n1",)}
    (folder / "new").write_text("{")
    (folder / "new").replace(folder / hostnames.FILE)
    reader.look()
    assert reader.hosts is None
    (folder / hostnames.FILE).unlink()
    (folder / hostnames.FILE).symlink_to("/etc/passwd")
    assert read(folder) is None


def test_the_one_that_stands_by_asks_nobody(folder: Path) -> None:
    slurm = Slurm()
    hostnames.Table(str(folder), slurm.hosts, lambda: False).look()

    assert slurm.asked == 0
    assert read(folder) is None


def test_it_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostnames, "LOOK_EVERY", 0.0)
    slurm = Slurm()

    async def some() -> None:
        task = asyncio.create_task(hostnames.Table(str(folder), slurm.hosts, lambda: True).forever())
        while slurm.asked < 3:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(some())
    assert read(folder) == TABLE
