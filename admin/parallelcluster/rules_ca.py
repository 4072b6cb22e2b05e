"""Our rules about the CA of the directory: on each node as soon as anything of ours runs there, for sssd."""

from __future__ import annotations

from admin.parallelcluster import facts
from admin.parallelcluster.look import Findings, Look, Rule, error, text, warning
from admin.parallelcluster.rules_actions import places
from conf.quote import quote
from conf.rawchecks import section

CA = "/etc/secure-slurm/ldap-ca.crt"
"""Where the action, in both stages, puts what the site's archive has under that name."""


def directory_ca(look: Look) -> Findings:
    """Who brings it, and when."""
    named = text(section(look.raw, "DirectoryService"), "LdapTlsCaCert")
    if not named:
        return
    if named != CA:
        yield warning(
            "directory-ca-elsewhere",
            ("DirectoryService", "LdapTlsCaCert"),
            f"nothing of ours puts {quote(named)} on the nodes: it has to be in their image, or sssd verifies nobody",
            f"write LdapTlsCaCert: {CA}, which comes with the site's archive",
        )
        return
    for place in places(look):
        # of the head node's another rule speaks
        if place.role != "head" and place.ours("OnNodeStart") is None:
            yield error(
                "directory-ca-late",
                (*place.where, "CustomActions"),
                f"sssd runs on {place.name} before OnNodeConfigured, and nothing brings {CA} by then",
                f"add to it: CustomActions: OnNodeStart: Script: s3://.../actions/{facts.ACTION}, "
                f"Args: [{place.role}, start, ...]",
            )


RULES: tuple[Rule, ...] = (directory_ca,)
