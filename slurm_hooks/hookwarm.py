"""Once in the hook server, before it forks: what the first run of any code costs, and its processes would each pay.

Python looks up and specialises a function's instructions as it runs them, loads codecs when they are first asked for,
and the linker finds a library's functions when they are first called. So everything that looks at something in a hook
is done here, for a job that there cannot be. Nothing is changed, and nobody is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json

from audit.chain import Chain
from conf.errors import SecureSlurmError
from conf.hookconf import check_sources, read_hook_config
from conf.tag import parse_extra
from keys import process
from keys.durable import boot_id
from keys.journal import journal_of
from keys.scratch.plan import names_from_config
from keys.scratch.teardown import verify_gone
from slurm_hooks import wire
from slurm_hooks.hookenv import read_job

ROUNDS = 4
JOB = 4294967295
"""No job of Slurm's has this id (NO_VAL and above are no numbers)."""
_TAG = "secure-slurm:class=x;residency=y;scratch=4096"
_SECONDS = 5.0


def warm(node: str) -> None:
    """Look at a job that is not there, a few times. A step that fails is no harm: a hook will say so of itself."""
    for _ in range(ROUNDS):
        for step in (_texts, _node):
            with contextlib.suppress(SecureSlurmError, OSError, ValueError, KeyError):
                step(node)
    # that a program is in root's hands alone is looked at in each hook, not once in a server's life
    process.program.cache_clear()


def _texts(node: str) -> None:
    fields = {"SLURM_JOB_ID": "17", "SLURMD_NODENAME": node, "SLURM_JOB_NODELIST": node, "SLURM_JOB_EXTRA": _TAG}
    read_job(fields)
    parse_extra(_TAG)
    message = wire.encode({"verb": "open", "nonce": wire.new_nonce(), "job": "17"})
    wire.decode_body(message.partition(b"\n")[2])
    json.dumps({"text": "x\n".encode("unicode_escape").decode("ascii"), "hash": hashlib.sha256(b"x").hexdigest()})


def _node(node: str) -> None:
    config = read_hook_config(check_sources=False)
    check_sources(config)
    process.Budget(_SECONDS).run([process.program("true")], cap=_SECONDS)
    boot_id()
    Chain(f"{config['audit']['directory']}/node-{node}", "node", node)
    journal = journal_of(config, node)
    journal.read(JOB)
    journal.before_reboot(JOB)
    journal.locked(JOB)
    if config["scratch"]["backing"] == "file":
        verify_gone(names_from_config(node, JOB, config["scratch"]))
