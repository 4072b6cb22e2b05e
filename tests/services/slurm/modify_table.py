"""Every field that ``scontrol update`` can set on a job, and whether it may be: the table of docs/admin.md.

The columns are three people, for a job with a tag: its owner, an operator of Slurm's, and root. Whoever else asks is
refused by Slurm. A rule stands for a refusal by the filter, ALLOW for none; what Slurm itself says to a change that
the filter allows is the table's matter only for ``taken``: whose change Slurm takes while the job is pending.
"""

from __future__ import annotations

from typing import NamedTuple

ALLOW = "allow"
TAG, FIELD, UNSEEN, RUNNING, OTHERS = (
    "modify.tag",
    "modify.field",
    "modify.unseen",
    "modify.running",
    "identity.modify-uid",
)
SLURM = "slurm"
"""Refused by slurmctld before it asks the filter."""


NONE = "none"
"""No such field."""
LATER = (26, 5)
"""The Slurm whose Lua shows more fields, and whose scontrol knows one more."""


class Row(NamedTuple):
    """One change. ``root`` empty: as the owner. ``running``: what both are told about a running job, if not the same.

    ``taken`` by Slurm while the job is pending: letters of alice, oper and root. ``later``: what owner (and root) and
    operator are told from 26.05 on.
    """

    change: str
    owner: str
    operator: str = OTHERS
    root: str = ""
    running: str = ""
    taken: str = "ar"
    later: tuple[str, str] = ("", "")

    @property
    def field(self) -> str:
        """The field's name as scontrol spells it."""
        return self.change.partition("=")[0]

    def of(self, version: str) -> Row:
        """The row as it is for a version of Slurm's, such as ``24.11.5``."""
        is_later = tuple(int(part) for part in version.split(".")[:2]) >= LATER
        return self._replace(owner=self.later[0], operator=self.later[1]) if is_later and self.later[0] else self

    def expected(self, who: str, running: bool) -> str:
        """What the filter says: ALLOW, SLURM, NONE or a rule."""
        if who == "oper":
            return self.operator
        verdict = self.owner if who == "alice" or not self.root else self.root
        return self.running if running and self.running else verdict


TABLE = (
    # the tag and the record
    Row("Extra=", TAG, TAG),
    Row("Extra=note", TAG, TAG),
    Row("Extra=secure-slurm:class=internal", TAG, TAG),
    Row("Extra=secure-slurm:class=phi;residency=us;scratch=33554432", TAG, TAG),
    Row("Extra=secure-slurm:class=phi;residency=eu;scratch=33554432", ALLOW, ALLOW),  # the same tag
    Row("AdminComment=", SLURM, SLURM, "modify.record"),
    Row("AdminComment=note", SLURM, SLURM, "modify.record"),
    Row("AdminComment='secure-slurm/1 cluster=test'", SLURM, SLURM, "modify.record"),
    # where it runs
    Row("Features=eu", ALLOW),
    Row("Features=a|b", ALLOW),
    Row("Features=", ALLOW),
    Row("Features=us", "residency.constraint"),
    Row("Features=a*2", "residency.constraint"),
    Row("Prefer=b", ALLOW),
    Row("Prefer=us", "residency.constraint"),
    Row("Partition=phi", ALLOW),
    Row("Partition=us", "residency.partition"),
    Row("Partition=main,us", "residency.partition"),
    Row("NodeList=e1", ALLOW, running=RUNNING),
    Row("ReqNodeList=e1", ALLOW, running=RUNNING),
    Row("NodeList=u1", ALLOW, running=RUNNING),  # it never starts, for its constraint stays
    Row("ExcNodeList=e4", ALLOW),
    Row("ClusterFeatures=x", UNSEEN, UNSEEN),  # federations only
    Row("Clusters=other", FIELD),
    Row("OverSubscribe=YES", FIELD),
    Row("Shared=0", FIELD),
    Row("MCSLabel=x", NONE, NONE, later=(FIELD, OTHERS)),
    Row("Reboot=YES", FIELD),
    # on whose account
    Row("Account=lab", ALLOW),
    Row("Account=other", "role.account"),
    Row("QOS=high", ALLOW),
    Row("QOS=low", "role.qos"),
    Row("ReservationName=mine", ALLOW),
    Row("ReservationName=theirs", "role.reservation"),
    Row("Licenses=foo", ALLOW),
    Row("Licenses=bar", "role.license"),
    Row("WCKey=k", ALLOW),
    # how much
    Row("TimeLimit=29", ALLOW, ALLOW, taken="aor"),
    Row("TimeLimit=45", "limit.time", "limit.time"),
    Row("TimeLimit=UNLIMITED", "limit.time", "limit.time"),
    Row("TimeMin=1", ALLOW),
    Row("EndTime=now+60", FIELD),  # TimeLimit says the same, and is judged
    Row("NumNodes=2", ALLOW, running=RUNNING),
    Row("NumNodes=1,3", ALLOW, running=RUNNING),
    Row("NumNodes=4", "limit.nodes", running=RUNNING),
    Row("NumNodes=ALL", "limit.nodes", running=RUNNING),
    Row("ReqNodes=1", ALLOW, running=RUNNING),
    Row("NumCPUs=2-4", ALLOW),
    Row("NumTasks=2", ALLOW),
    Row("ReqProcs=2", ALLOW),
    Row("CPUsPerTask=2", ALLOW),
    Row("TasksPerNode=2", ALLOW, taken="r"),
    Row("MinCPUsNode=2", ALLOW),
    Row("MinMemoryNode=10", ALLOW),
    Row("MinMemoryCPU=10", ALLOW),
    Row("MinTmpDiskNode=1", ALLOW),
    Row("Gres=gpu:1", ALLOW),
    Row("Gres=nvme:1", "limit.gres"),
    Row("TresPerNode=gres/gpu:1", ALLOW),
    Row("TresPerNode=gres/gpu:4", "limit.gpus"),
    Row("TresPerJob=gres/gpu:3", ALLOW),
    Row("TresPerJob=gres/gpu:4", "limit.gpus"),
    Row("TresPerTask=gres/gpu:4", "limit.gpus"),
    Row("TresPerTask=gres/gpu:1 NumTasks=2", ALLOW, taken=""),
    Row("TresPerSocket=gres/gpu:1", "limit.gpus"),  # sockets cannot be counted
    Row("CpusPerTres=gpu:1", ALLOW, taken=""),
    Row("MemPerTres=gpu:10", ALLOW, taken=""),
    Row("TresBind=gpu:single:1", ALLOW, taken=""),
    Row("TresFreq=gpu:low", ALLOW),
    Row("ReqSockets=1", ALLOW),
    Row("ReqCores=1", ALLOW),
    Row("ReqThreads=1", ALLOW),
    Row("Contiguous=YES", ALLOW, taken="r"),
    Row("CoreSpec=1", UNSEEN, UNSEEN, later=(ALLOW, OTHERS), taken=""),
    Row("ThreadSpec=1", UNSEEN, UNSEEN, later=(ALLOW, OTHERS), taken=""),
    Row("Switches=1@10", ALLOW),
    Row("wait-for-switch=5", ALLOW),
    # where its data goes
    Row("WorkDir=/data/phi/sub", ALLOW),
    Row("WorkDir=/tmp", "path.work-dir"),
    Row("WorkDir=/data/phi/../open", "path.work-dir"),
    Row("StdOut=/data/phi/o", ALLOW),
    Row("StdOut=/data/open/o", "path.output"),
    Row("StdErr=/data/phi/e", ALLOW),
    Row("StdErr=../open/e", "path.output"),
    Row("StdIn=/dev/null", ALLOW),
    Row("StdIn=/etc/motd", "path.output"),
    Row("MailType=END", ALLOW),
    Row("MailUser=alice", ALLOW),
    Row("MailUser=eve@example.com", "route.mail"),
    Row("BurstBuffer=x", SLURM, SLURM),
    # when
    Row("StartTime=now+600", ALLOW),
    Row("EligibleTime=now+600", ALLOW),
    Row("Deadline=now+1day", UNSEEN, UNSEEN),
    Row("DelayBoot=10", ALLOW),
    Row("Dependency=afterok:1", ALLOW),
    Row("Dependency=expand:1", "route.dependency-expand"),
    Row("Dependency=", ALLOW),
    Row("Requeue=1", ALLOW),
    Row("Requeue=0", FIELD),
    Row("Priority=4", ALLOW, ALLOW, taken=""),
    Row("Nice=5", ALLOW, ALLOW, taken="aor"),
    Row("SiteFactor=5", UNSEEN, UNSEEN),
    Row("ResetAccrueTime", UNSEEN, UNSEEN),
    Row("ArrayTaskThrottle=2", ALLOW, ALLOW, taken=""),
    # texts
    Row("Name=x", ALLOW),
    Row("JobName=y", ALLOW),
    Row("Comment=x", ALLOW),
    Row("Comment=x\u202ey", "input.control-characters"),
)


# Allowed because they change nothing
_AS_IT_IS = {"Extra=secure-slurm:class=phi;residency=eu;scratch=33554432", "Requeue=1"}


def documented() -> list[str]:
    """The table of docs/admin.md: a line for the fields that people are told the same about, in the table's order."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for field in dict.fromkeys(row.field for row in TABLE):
        rows = [
            row.of(".".join(map(str, LATER))) for row in TABLE if row.field == field and row.change not in _AS_IT_IS
        ]
        told = tuple(_told([(row.expected(who, False), row.running) for row in rows], who) for who in _COLUMNS)
        groups.setdefault((told[0], told[1], told[2]), []).append(f"`{field}`")
    head = ["| field | owner | operator | root |", "|---|---|---|---|"]
    return head + [f"| {', '.join(fields)} | {' | '.join(told)} |" for told, fields in groups.items()]


_COLUMNS = ("alice", "oper", "root")


def _told(verdicts: list[tuple[str, str]], who: str) -> str:
    said = list(dict.fromkeys(verdict for verdict, _ in verdicts))
    rules = " ".join(f"`{verdict}`" for verdict in said if verdict not in {ALLOW, SLURM})
    if ALLOW not in said:
        return f"no: {rules}" if rules else "no, says Slurm"
    running = next((rule for _, rule in verdicts if rule), "")
    text = f"judged: {rules}" if rules else "yes"
    return f"{text}; not while it runs: `{running}`" if running and who != "oper" else text
