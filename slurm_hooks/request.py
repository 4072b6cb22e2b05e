"""The ``submit`` request that job_submit.lua sends, written here for a job that nobody submitted.

The one other writer of its fields: whatever tries a policy (explain, policy test, policy replay) describes a job with
:class:`Submission`, so that the engine sees what it would see from slurmctld. Too long texts are cut as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from conf.tag import ENVIRONMENT

VALUE_LIMIT = 8192
"""Bytes of one field; job_submit.lua cuts what is longer, and says so."""
NODES_LIMIT = 131072
LIMITS = {"dependency": 131072, "demand_nodes": NODES_LIMIT}
LINES_LIMIT = 64
DIRECTIVE = b"#SECURE"
# as in job_submit.lua: of these, zero is "unset" as well
NOT_ZERO = frozenset(
    ["argc", "begin_time", "end_time", "immediate", "ntasks_per_board", "ntasks_per_tres", "segment_size"]
)
VARIABLES = frozenset([*ENVIRONMENT, "SLURM_GET_USER_ENV"])
"""The variables of a batch job's environment that are sent; nobody could list the others there."""
SESSION = frozenset(["HOME", "PATH", "USER", "SHELL", "PWD", "LD_PRELOAD", "LD_LIBRARY_PATH"])
"""Any of them shows that the environment of the submitter's session came with the job."""
STAGING = (b"#BB", b"#DW")


@attrs.frozen(kw_only=True)
class Submission:
    """A job as it reaches slurmctld.

    ``texts`` and ``numbers`` are by Slurm's names of the fields (job_desc_msg_t, as Lua knows them); what is absent or
    None is unset. ``uid`` and ``user`` are the owner's, ``submitter`` another uid that submits it. ``script``: the
    whole text of a batch script, None: there is none (srun, salloc). ``environment``: by variable; None: not sent.
    ``default_partition``, ``demand_nodes`` (the nodes of each partition that demands a tag), ``forced_sharing`` (those
    of the job's partitions with OverSubscribe=FORCE), ``dependency_uids`` (the owners of the jobs that it depends on,
    ``?`` for one that is not known) and ``host`` (where it is submitted) is what slurmctld adds.
    """

    uid: int
    user: str | None
    submitter: int | None = None
    texts: Mapping[str, str | None] = attrs.field(factory=dict)
    numbers: Mapping[str, int | None] = attrs.field(factory=dict)
    script: bytes | None = b""
    environment: Mapping[str, str] | None = attrs.field(factory=dict)
    host: str | None = None
    default_partition: str | None = None
    demand_nodes: Mapping[str, str] = attrs.field(factory=dict)
    forced_sharing: tuple[str, ...] = ()
    dependency_uids: tuple[str, ...] = ()
    cron: bool = False

    def fields(self) -> dict[str, bytes]:
        """The fields of the request, without its nonce."""
        submitter = self.uid if self.submitter is None else self.submitter
        found = {"verb": b"submit", "submit_uid": str(submitter).encode(), "user_id": str(self.uid).encode()}
        for name, text in self._texts():
            if text is not None:
                _put(found, name, text.encode("utf-8", "surrogateescape"))
        for name, number in self.numbers.items():
            if number is not None and (number or name not in NOT_ZERO):
                # Lua's numbers are doubles
                found[name] = f"{float(number):.0f}".encode()
        if self.cron:
            found["cron_job"] = b"1"
        if self.script is not None:
            _put_script(found, self.script)
        return found

    def _texts(self) -> Iterator[tuple[str, str | None]]:
        yield from self.texts.items()
        yield "user_name", self.user
        yield "alloc_node", self.host
        yield "default_partition", self.default_partition
        if self.demand_nodes:
            yield "demand_nodes", "\n".join(f"{name}={nodes}" for name, nodes in self.demand_nodes.items())
        if self.forced_sharing:
            yield "forced_sharing", ",".join(self.forced_sharing)
        if self.dependency_uids:
            yield "dependency_uids", ",".join(self.dependency_uids)
        # srun and salloc send no environment
        if self.environment is not None and (self.script is not None or "het_job_offset" in self.numbers):
            yield "has_environment", "1"
            yield from ((f"env.{name.lower()}", self.environment.get(name)) for name in sorted(VARIABLES))
            yield "user_environment", "1" if SESSION & self.environment.keys() else None


def _put(found: dict[str, bytes], name: str, value: bytes) -> None:
    limit = LIMITS.get(name, VALUE_LIMIT)
    found[name] = value[:limit]
    if len(value) > limit:
        found[f"{name}.cut"] = b"1"


def _put_script(found: dict[str, bytes], script: bytes) -> None:
    """Every line that starts with ``#SECURE``, wherever it stands, as far as they are read."""
    found["has_script"] = b"1"
    if any(line.startswith(STAGING) for line in script.split(b"\n")):
        found["script_burst_buffer"] = b"1"
    kept: list[bytes] = []
    size = 0
    for line in script.split(b"\n"):
        if not line.startswith(DIRECTIVE):
            continue
        size += len(line) + 1
        if len(kept) >= LINES_LIMIT or size > VALUE_LIMIT:
            found["script_lines.overflow"] = b"1"
            break
        kept.append(line)
    if kept:
        found["script_lines"] = b"\n".join(kept)
