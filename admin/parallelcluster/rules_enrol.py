"""Our rules about how nodes come by their certificates: an instance is made and ended without anybody looking on."""

from __future__ import annotations

from admin.parallelcluster.look import QUEUES, Findings, Look, Rule, error, warning
from conf.quote import quote

DAEMONS = ("link", "enrol")


def enrolment(look: Look) -> Findings:
    """Whether nodes of this region enrol."""
    if look.site is None or not look.queues():
        return
    enrol = look.site.enrol
    if not enrol.listen:
        yield warning(
            "enrol-none",
            QUEUES,
            "enrol.listen is empty: nodes get no certificate by themselves, and one that has none in its image never "
            "joins",
            "in secure-slurm.yaml: enrol: {listen: 0.0.0.0:6831, head: [head.cluster.internal:6831], "
            f"regions: [{look.region or 'REGION'}]}}",
        )
    elif look.region and look.region not in enrol.regions:
        yield error(
            "enrol-region",
            ("Region",),
            f"enrol.regions of secure-slurm.yaml lacks {quote(look.region)}: none of these nodes would be enrolled",
            f"enrol: {{regions: [{look.region}]}}",
        )


def head_names(look: Look) -> Findings:
    """By what name nodes find the head node: its host name is not known before it is there."""
    if look.site is None:
        return
    for name in DAEMONS:
        part = getattr(look.site, name)
        if part.listen and not part.head:
            yield error(
                "head-unnamed",
                ("HeadNode",),
                f"{name}.head is empty, so that nodes look for {', '.join(look.site.cluster.head_nodes)}, a name that "
                "nothing resolves there",
                f"name a record that you make in a private zone: {name}.head: "
                f"[head.cluster.internal:{part.listen.rpartition(':')[2]}]",
            )


RULES: tuple[Rule, ...] = (enrolment, head_names)
