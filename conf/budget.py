"""Whether Slurm's own limits leave the hooks the time that they are promised. Pure: it reads what scontrol printed.

slurm.conf(5): a Prolog must be done before the job's credential expires (``cred_expire``, 120 s by default), before
slurmd gives slurmctld up (``MessageTimeout``, 10 s), and before slurmctld misses the job on its node
(``BatchStartTimeout``, 10 s). A PrologSlurmctld that runs longer than ``PrologEpilogTimeout`` (from 25.05 on
``PrologTimeout``) is killed, and its job requeued by Slurm, uncounted and for ever.
"""

from __future__ import annotations

import re

_LINE = re.compile(r"([A-Za-z_]+) += ?(.*)")
_CRED = re.compile(r"cred_expire=([0-9]{1,9})")
_SECONDS = re.compile(r"([0-9]{1,9})(?: sec)?")
# slurm.h: NO_VAL16 and NO_VAL, by which a limit that was not set is printed; and what it then is
_NONE = (65534, 4294967294)
_CRED_DEFAULT = 120
ROOM = 40.0
"""Seconds that PrologSlurmctld may need after its deadline: three of Slurm's commands and a question to the daemon."""


def complaints(printed: str, prolog_deadline: float, start_deadline: float) -> list[str]:
    """What is too short in the configuration that ``scontrol show config`` has printed, one sentence each.

    :param prolog_deadline: ``node.prolog_deadline``, and ``start_deadline``: ``lifecycle.start_deadline``, in seconds.
    """
    found = {match[1]: match[2].strip() for line in printed.splitlines() if (match := _LINE.match(line))}
    said = []
    for name, limit in (
        ("cred_expire (in AuthInfo)", _cred_expire(found.get("AuthInfo", ""))),
        *((name, _seconds(found.get(name, ""))) for name in ("MessageTimeout", "BatchStartTimeout")),
    ):
        if limit is not None and limit <= prolog_deadline:
            said.append(
                f"slurm.conf: {name} is {limit} s: it must be above node.prolog_deadline ({prolog_deadline:g} s)"
            )
    for name in ("PrologEpilogTimeout", "PrologTimeout"):
        limit = _seconds(found.get(name, ""))
        if limit is not None and limit < start_deadline + ROOM:
            said.append(
                f"slurm.conf: {name} is {limit} s: it must be {ROOM:g} s above lifecycle.start_deadline "
                f"({start_deadline:g} s), or Slurm kills PrologSlurmctld and requeues its job, again and again"
            )
    return said


def _seconds(text: str) -> int | None:
    match = _SECONDS.fullmatch(text)
    return None if match is None or int(match[1]) in _NONE else int(match[1])


def _cred_expire(text: str) -> int:
    match = _CRED.search(text)
    return int(match[1]) if match else _CRED_DEFAULT
