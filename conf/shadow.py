"""The rules that a policy may put in shadow: decided and recorded, not enforced.

Only what the policy itself chooses to limit. Not among them: whatever says who somebody is, that a text can be
understood, that a job stays in its jurisdiction, or that a decision was made at all; without those there is no tag
to speak of.
"""

from __future__ import annotations

SHADOWABLE = frozenset(
    [
        *("rbac.role", "role.expired", "role.partition", "role.account", "role.qos", "role.reservation"),
        *("role.license", "class.partition", "partition.class", "partition.sharing"),
        *("dataset.role", "dataset.expired"),
        *("limit.nodes", "limit.time", "limit.gpus", "limit.gres", "limit.array"),
        *("path.work-dir", "path.output"),
        *("route.mail", "route.container", "route.burst-buffer", "route.environment", "route.user-env"),
        "route.dependency-other",
    ]
)
