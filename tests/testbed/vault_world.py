"""An OpenBao server that `secure-slurm vault init` has set up, with clients as the head node and the nodes have."""

import argparse
from pathlib import Path
from typing import NamedTuple

import attrs

from admin import vault_init
from conf.site import Site, Vault, load_site
from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from tests.testbed.openbao import OpenBao
from tests.testbed.pki import CA

SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head]}}
vault:
  address: {address}
  ca_file: {ca_file}
  timeout: {timeout}
  head: {{role_id_file: {directory}/role-id, secret_id_file: {directory}/secret-id}}
  node: {{certificate: {directory}/nodes/%n.crt, private_key: {directory}/nodes/%n.key}}
ldap: {{flavour: openldap, uris: [ldaps://localhost], ca_file: /dev/null, bind_dn: cn=x, bind_password_file: /dev/null,
  base: dc=example}}
"""


class World(NamedTuple):
    """A server, its site file, and the CA of the nodes."""

    bao: OpenBao
    directory: Path
    site_file: Path
    node_ca: CA

    @property
    def site(self) -> Site:
        return load_site(str(self.site_file))

    @property
    def vault(self) -> Vault:
        return self.site.vault

    def init(self, *options: str) -> int:
        """Run `secure-slurm vault init` with the options, and the root token from a file."""
        token_file = self.directory / "admin-token"
        token_file.touch(mode=0o600)
        token_file.write_text(self.bao.root_token)
        parser = argparse.ArgumentParser()
        vault_init.add_parser(parser.add_subparsers())
        args = parser.parse_args(["vault", "init", "--token-file", str(token_file), "--owner", "root", *options])
        args.config = str(self.site_file)
        return vault_init.run(args)

    def first_init(self) -> int:
        """Run it as on a new cluster."""
        return self.init(
            "--node-ca",
            str(self.node_ca.certificate),
            "--node-name",
            "n*",
            "--secret-id-out",
            str(self.directory / "secret-id"),
        )

    def head(self, **changes: object) -> VaultHead:
        return VaultHead.from_site(attrs.evolve(self.vault, **changes))  # type: ignore[arg-type]

    def node(self, name: str, **changes: object) -> VaultNode:
        self.node_ca.client(name, self.directory / "nodes")
        return VaultNode.from_site(attrs.evolve(self.vault, **changes), name)  # type: ignore[arg-type]
