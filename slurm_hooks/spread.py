"""How long a node waits before it asks Vault, when many nodes begin at the same moment. Pure.

The Prologs of one job begin on all its nodes at once, and each node then logs in to Vault: the dearest thing that Vault
is asked for, a TLS handshake and a token that is written down. A hundred at once make each of them wait for all, up to
the deadline. So each waits a random part of the time in which Vault is to take them all. Few nodes do not wait, and
nobody waits where the node has a token already. The head node's own requests are bounded by their number
(:mod:`slurm_hooks.admission`), enrolments as well (:mod:`slurm_hooks.enrolserver`).
"""

from __future__ import annotations

import random

FEW = 8
"""Nodes that may come at once."""
RATE = 25.0
"""Logins a second that Vault is asked for by one job; with a TLS handshake one takes 40 to 50 ms on two cores."""
MOST = 8.0
"""Seconds that nobody waits longer than, well below ``node.prolog_deadline``."""


def pause(nodes: int, deadline: float) -> float:
    """Seconds to wait, for one node of a job on so many. ``deadline``: of the whole Prolog; a fifth of it at most."""
    if nodes <= FEW:
        return 0.0
    return random.uniform(0.0, min(nodes / RATE, MOST, deadline / 5))  # noqa: S311 - no secret
