"""A cluster whose nodes enrol: a real Vault with PKI, the enrolment daemon's server, machines with a metadata service.

AWS's part, the key of a region, is a test CA's; a machine is a folder and an address on loopback.
"""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from conf.site import Site, load_site
from keys.vault_enrol import VaultEnrol
from keys.vault_node import VaultNode
from slurm_hooks import enrolment, enrolserver, link
from slurm_hooks.enrolling import Desk
from slurm_hooks.enrolment import Enrolment
from slurm_hooks.enrolserver import EnrolServer, Limit
from slurm_hooks.instances import FromFile, Source
from tests.testbed.imds import Imds, Region, document, pin
from tests.testbed.openbao import OpenBao
from tests.testbed.pki import CA
from tests.testbed.vault_world import World

REGION, ABROAD = "eu-central-1", "us-east-1"
HOME = Region(REGION)
FOREIGN = Region(ABROAD)
STRANGER = Region("a stranger")

SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head]}}
vault:
  address: {address}
  ca_file: {ca_file}
  timeout: 58s
  head: {{role_id_file: {directory}/role-id, secret_id_file: {directory}/secret-id}}
  node: {{method: {method}, certificate: {directory}/nodes/%n.crt, private_key: {directory}/nodes/%n.key}}
ldap: {{flavour: openldap, uris: [ldaps://localhost], ca_file: /dev/null, bind_dn: cn=x, bind_password_file: /dev/null,
  base: dc=example}}
node: {{place_file: {directory}/place, prolog_deadline: 59s,
  ec2: {{certificates: {directory}/ec2, account: '123456789012'}}}}
enrol:
  listen: 127.0.0.1:6831
  regions: [eu-central-1]
  source: file
  instances: {directory}/instances
  certificate: {directory}/enrol.crt
  private_key: {directory}/enrol.key
  ca_file: {directory}/link-ca.crt
  token_key: {directory}/token.key
  role_id_file: {directory}/enrol-role-id
  secret_id_file: {directory}/enrol-secret-id
"""


def ago(**when: float) -> str:
    """A ``pendingTime``."""
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(**when)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Cluster:
    """``said`` is what the audit trail would get. The server listens while :meth:`serving`."""

    def __init__(self, bao: OpenBao, directory: Path, *, method: str = "cert") -> None:
        self.directory = directory
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.site_file = directory / "secure-slurm.yaml"
        words = {"address": bao.url, "ca_file": bao.ca.certificate, "directory": directory, "method": method}
        self.site_file.write_text(SITE.format(**words))
        self.ca = CA(directory / "own-ca", "the site")
        self.world = World(bao, directory, self.site_file, self.ca)
        pin(directory / "ec2", REGION, HOME)
        (directory / "place").write_text(f"{REGION}\n")
        self.ca.server("enrol", ["127.0.0.1", "head"], directory)
        self.said: list[tuple[str, dict[str, object]]] = []
        self.port = 0

    def init(self, *options: str) -> int:
        """``vault init`` as for a new cluster, and the bundle of both CAs, as the documentation says."""
        nodes_ca = self.directory / "nodes-ca.crt"
        code = self.world.init(
            *("--node-name", "n*", "--secret-id-out", f"{self.directory}/secret-id"),
            *("--enrol-secret-id-out", f"{self.directory}/enrol-secret-id", "--enrol-owner", "root"),
            *("--node-ca-out", str(nodes_ca), *options),
        )
        bundle = self.ca.certificate.read_text() + nodes_ca.read_text()
        (self.directory / "link-ca.crt").write_text(bundle)
        return code

    @property
    def site(self) -> Site:
        return load_site(str(self.site_file))

    def say(self, event: str, **fields: object) -> None:
        self.said.append((event, fields))

    def means(self, **instances: str) -> None:
        """Say beside the nodes which instance each is."""
        lines = [f"{node} {instance}\n" for node, instance in instances.items()]
        (self.directory / "instances").write_text("".join(lines))

    @contextmanager
    def serving(self, *, source: Source | None = None, **changes: Any) -> Iterator[None]:
        """The head node's part, on a thread of its own; ``changes`` are of ``enrol``.

        Both sides wait for longer than shipped: no claim is made of that, and a busy machine may stand still.
        """
        site = self.site
        site = attrs.evolve(site, enrol=attrs.evolve(site.enrol, listen="127.0.0.1:0", **changes))
        before = self.port
        ready, stop = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()
        with pytest.MonkeyPatch.context() as patch, VaultEnrol.from_site(site) as vault:
            for module, name in ((link, "HANDSHAKE"), (enrolserver, "ARRIVE"), (enrolment, "CONNECT")):
                patch.setattr(module, name, 60.0)
            patch.setattr(enrolment, "DEADLINE", 180.0)
            chosen = source or FromFile(site.enrol.instances, 0)
            desk = Desk(site, vault, chosen, self.say)

            async def serve() -> None:
                limit = Limit(burst=1000)
                async with EnrolServer(site.enrol, desk.answer, limit=limit, deadline=180.0, most_of_one=100) as server:
                    self.port = server.port
                    ready.set()
                    await stop.wait()

            thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
            thread.start()
            try:
                assert ready.wait(120)
                yield
            finally:
                loop.call_soon_threadsafe(stop.set)
                thread.join(60)
                loop.close()
                self.port = before

    def node_site(self, folder: Path, imds: Imds | None) -> Site:
        """The site file as one machine sees it: its own folder, its own metadata service."""
        site = self.site
        ec2 = attrs.evolve(site.node.ec2, endpoint=imds.endpoint if imds else "http://127.0.0.1:9")
        login = attrs.evolve(site.vault.node, certificate=f"{folder}/node.crt", private_key=f"{folder}/node.key")
        return attrs.evolve(
            site,
            node=attrs.evolve(site.node, ec2=ec2),
            vault=attrs.evolve(site.vault, node=login),
            enrol=attrs.evolve(site.enrol, head=(f"127.0.0.1:{self.port}",)),
        )


class Machine:
    """An instance with a disk, a metadata service, and the name that it thinks it has."""

    def __init__(self, cluster: Cluster, folder: Path, node: str, instance: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.node = node
        self.instance = instance
        self.imds = Imds()
        self.imds.answer = genuine(instance)
        folder.mkdir(mode=0o700, exist_ok=True)

    def __enter__(self) -> Machine:
        self.imds.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.imds.__exit__(*exc)

    def shows(self, **changes: Any) -> None:
        """Another document of this instance: other fields, or another signer (see :func:`genuine`)."""
        self.imds.answer = genuine(self.instance, **changes)

    @property
    def site(self) -> Site:
        return self.cluster.node_site(self.folder, self.imds)

    @property
    def enrolment(self) -> Enrolment:
        return Enrolment(self.site, self.node)

    def vault(self) -> VaultNode:
        return VaultNode.from_site(self.site.vault, self.node, self.enrolment.login())


def genuine(instance: str, *, signer: Region = HOME, embed: bool = False, **changes: Any) -> bytes:
    """A document that the region has signed, of an instance at this machine's address."""
    return signer.sign(document(**{"instanceId": instance, "privateIp": "127.0.0.1", **changes}), embed=embed)
