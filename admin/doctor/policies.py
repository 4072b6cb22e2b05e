"""The shipped policies as patterns: what a machine cannot know of Vault (the accessor of a mount) matches anything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from admin.vault_policies import Roles, node_word, policy_words, render_policy

if TYPE_CHECKING:
    from conf.site import Site

_UNKNOWN = "accessor-of-the-mount"


def shipped(file: str, site: Site) -> tuple[str, ...]:
    """``conf/vault/<file>`` for this site, a regular expression for each line that means something."""
    text = render_policy(file, policy_words(site, node_word(site, lambda _mount: _UNKNOWN)))
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return tuple(re.escape(line).replace(re.escape(_UNKNOWN), "[A-Za-z0-9_-]+") for line in lines if line)


def own(site: Site, role: str) -> dict[str, str]:
    """The policies that this role may read, by their names in Vault: the file of each."""
    names = Roles.of(site.cluster.name)
    node = {names.node_policy: "node.hcl"}
    return {names.head_policy: "head.hcl", **node} if role == "head" else node
