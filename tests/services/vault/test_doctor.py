"""secure-slurm doctor's doors to a real OpenBao: what the head node and a node find out by themselves, and judge."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from admin.doctor import doors_far, probe
from admin.doctor.facts import Certificate, Clock, VaultOwn, VaultServer
from admin.doctor.finding import Finding
from admin.doctor.judge_certificates import vault_certificate
from admin.doctor.judge_vault import clock, login, policies, setup, vault
from admin.doctor.scene import Scene
from keys.secret import Secret
from tests.testbed.pki import CA
from tests.testbed.vault_world import World

HEAD, NODE = "secure-slurm-test-head", "secure-slurm-test-node"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe runs here and not in a child as another account, who may not enter pytest's folders."""

    def here(_account: str, words: list[str], _seconds: float) -> dict[str, Any]:
        return {"vault-server": probe.vault_server, "vault-own": probe.vault_own}[words[0]](*words[1:])

    monkeypatch.setattr(doors_far.children, "probe", here)


def scene(world: World, role: str = "head") -> Scene:
    site = world.site
    return Scene(frozenset({role}), False, "n1", str(world.site_file), "", site, None)


def server(world: World) -> VaultServer:
    return doors_far.vault_server(scene(world))


def own(world: World, role: str = "head") -> VaultOwn:
    if role == "compute":
        world.node("n1").close()  # makes its certificate
    return doors_far.vault_own(scene(world, role))


@pytest.mark.usefixtures("in_process")
class TestDoors:
    def test_a_server_that_is_sealed(self, own_world: World) -> None:
        own_world.bao.seal()
        found = vault(server(own_world))
        assert (found.state, "sealed" in found.seen) == ("fail", True)
        assert login(own(own_world)).state == "fail"
        own_world.bao.unseal()
        assert vault(server(own_world)).state == "ok"
        assert login(own(own_world)).state == "ok"

    def test_a_server_that_is_away(self, own_world: World) -> None:
        own_world.bao.stop()
        seen = server(own_world)
        assert vault(seen).state == "fail"
        assert vault_certificate(seen, Clock(0.0, None)).state == "fail"
        assert login(own(own_world)).state == "fail"

    @pytest.mark.parametrize(("role", "name"), [("head", HEAD), ("head", NODE), ("compute", NODE)])
    def test_a_policy_that_was_changed(self, own_world: World, role: str, name: str) -> None:
        assert policies(own(own_world, role)) == Finding(
            "ok", f"as shipped: {HEAD + ', ' if role == 'head' else ''}{NODE}"
        )
        path = f"sys/policies/acl/{name}"
        before = own_world.bao.request("GET", path)["data"]["policy"]
        own_world.bao.request("POST", path, {"policy": before + '\npath "secret/*" {\n  capabilities = ["read"]\n}\n'})
        found = policies(own(own_world, role))
        assert found.state == "fail"
        assert f"{name} is not the shipped one: it has 'path \"secret/*\" {{' as well" in found.seen
        own_world.bao.request("POST", path, {"policy": before})
        assert policies(own(own_world, role)).state == "ok"

    @pytest.mark.parametrize("role", ["head", "compute"])
    def test_a_policy_that_hides_itself(self, own_world: World, role: str) -> None:
        name = HEAD if role == "head" else NODE
        own_world.bao.request("POST", f"sys/policies/acl/{name}", {"policy": 'path "*" { capabilities = ["list"] }'})
        found = policies(own(own_world, role))
        assert found.state == "fail"
        assert "the shipped one could be read" in found.seen

    def test_a_node_reads_its_own_policy_and_no_other(self, own_world: World) -> None:
        with own_world.node("n1") as node:
            assert "datakey" in node.session.read_policy(NODE)
            for name in (HEAD, "root", "default"):
                with pytest.raises(Exception, match="permission denied"):
                    node.session.read_policy(name)

    def test_a_role_that_was_changed_is_seen_with_an_admins_token(self, own_world: World) -> None:
        with Secret(own_world.bao.root_token.encode()) as token:
            seen = scene(own_world)._replace(token=token)
            assert setup(doors_far.vault_setup(seen)).state == "ok"
            own_world.bao.request("POST", "auth/cert/certs/secure-slurm-node", {"token_no_default_policy": False})
            found = setup(doors_far.vault_setup(seen))
        assert (found.state, "token_no_default_policy" in found.seen) == ("fail", True)

    def test_its_certificate_and_its_clock(self, own_world: World) -> None:
        seen = server(own_world)
        now = Clock(time.time(), synchronised=True)
        assert vault_certificate(seen, now).state == "ok"
        # the test bed's certificates are for a day
        assert vault_certificate(seen, now._replace(now=now.now + 86300)).state == "fail"
        assert clock(now, seen).state == "ok"

    def test_a_clock_that_is_wrong(self, own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe, "time", SimpleNamespace(time=lambda: time.time() - 7200))
        found = clock(Clock(time.time(), synchronised=True), server(own_world))
        assert (found.state, "apart from Vault's clock" in found.seen) == ("fail", True)

    def test_a_server_of_another_ca(self, own_world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
        other = CA(tmp_path_factory.mktemp("other"), "somebody else")
        own_world.site_file.write_text(
            own_world.site_file.read_text().replace(str(own_world.bao.ca.certificate), str(other.certificate))
        )
        seen = server(own_world)
        assert isinstance(seen.certificate, Certificate)
        assert vault(seen).state == "fail"
        assert vault_certificate(seen, Clock(0.0, None)).state == "fail"
