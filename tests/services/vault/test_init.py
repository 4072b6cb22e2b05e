"""`secure-slurm vault init` against a real server: idempotent, repairs drift, and says what it did."""

import argparse
import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from admin import vault_init
from conf.errors import ConfigError, Refused, UsageError
from keys.names import new_key_name
from keys.vault_errors import VaultDenied
from tests.testbed.openbao import OpenBao
from tests.testbed.vault_world import World

KEY = new_key_name("n1", "test", "9")
HEAD_ROLE = "auth/approle/role/secure-slurm-test-head"
NODE_ROLE = "auth/cert/certs/secure-slurm-node"


@pytest.fixture
def steps(own_world: World, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str]]]:
    """Run init with ``--json``: its exit code, and what was done to each thing."""

    def run(*options: str) -> tuple[int, dict[str, str]]:
        capsys.readouterr()
        code = own_world.init("--json", *options)
        answer = json.loads(capsys.readouterr().out)
        assert answer["drift"] == bool(code)
        return code, {
            step["what"]: step["state"] + (": " + step["detail"]) * bool(step["detail"]) for step in answer["steps"]
        }

    return run


def test_a_new_server_gets_everything_and_then_nothing(
    own_bao: OpenBao, build: Callable[[OpenBao], World], capsys: pytest.CaptureFixture[str]
) -> None:
    world = build(own_bao)
    assert world.init("--check") == 1
    assert "missing" in capsys.readouterr().out
    assert not world.bao.request("GET", "sys/mounts")["data"].get("secure-slurm-transit/")

    assert world.first_init() == 0
    first = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in first} == {"created", "changed"}
    assert world.init() == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"unchanged"}
    assert world.init("--check") == 0
    with world.head() as head, world.node("n1") as node:
        head.create_key(KEY)
        assert len(node.data_key(KEY)[0]) == 64


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("sys/policies/acl/secure-slurm-test-head", {"policy": 'path "*" { capabilities = ["read"] }'}, "policy"),
        ("sys/policies/acl/secure-slurm-test-node", {"policy": 'path "*" { capabilities = ["read"] }'}, "policy"),
        (HEAD_ROLE, {"token_ttl": 864000, "token_max_ttl": 864000}, "token_max_ttl, token_ttl"),
        (HEAD_ROLE, {"token_policies": ["secure-slurm-test-head", "root-like"]}, "token_policies"),
        (HEAD_ROLE, {"bind_secret_id": False, "secret_id_bound_cidrs": "", "token_bound_cidrs": "127.0.0.0/8"}, "bind"),
        (NODE_ROLE, {"token_no_default_policy": False}, "token_no_default_policy"),
        ("secure-slurm-grants/config", {"cas_required": False, "max_versions": 10}, "cas_required, max_versions"),
    ],
)
def test_drift_is_reported_and_repaired(
    own_world: World,
    steps: Callable[..., tuple[int, dict[str, str]]],
    path: str,
    body: dict[str, Any],
    where: str,
) -> None:
    own_world.bao.request("POST", path, body)
    code, found = steps("--check")
    assert code == 1
    (different,) = [state for state in found.values() if state != "unchanged"]
    assert different.startswith("different: ")
    assert where in different
    # a check repairs nothing
    assert steps("--check")[0] == 1
    code, done = steps()
    assert code == 0
    assert [state for state in done.values() if state != "unchanged"] == [different.replace("different", "changed")]
    assert set(steps("--check")[1].values()) == {"unchanged"}


@pytest.mark.parametrize(
    "path", ["sys/policies/acl/secure-slurm-test-node", HEAD_ROLE, "sys/mounts/secure-slurm-grants", "sys/auth/approle"]
)
def test_what_was_removed_is_missing_and_made_again(
    own_world: World, steps: Callable[..., tuple[int, dict[str, str]]], path: str
) -> None:
    own_world.bao.request("DELETE", path)
    code, found = steps("--check")
    assert code == 1
    assert "missing" in found.values()
    assert steps()[0] == 0
    assert set(steps("--check")[1].values()) == {"unchanged"}


def test_what_the_admin_asked_for_is_compared(
    own_world: World, tmp_path: Path, steps: Callable[..., tuple[int, dict[str, str]]]
) -> None:
    options = ("--node-name", "n*", "--node-name", "queue1-*", "--node-cidr", "127.0.0.0/8", "--secret-id-ttl", "90d")
    code, found = steps("--check", *options)
    assert code == 1
    assert "different: allowed_common_names, token_bound_cidrs" in found.values()
    assert "different: secret_id_ttl" in found.values()
    assert steps(*options)[0] == 0
    assert set(steps("--check", *options)[1].values()) == {"unchanged"}
    # and what is not asked for again stays
    assert set(steps()[1].values()) == {"unchanged"}
    with own_world.node("n1") as node:
        assert node.read_grant("1") is None


def test_addresses_that_are_not_the_heads_cannot_log_in(own_world: World) -> None:
    assert own_world.init("--head-cidr", "192.0.2.0/24", "--secret-id-out", str(own_world.directory / "secret-id")) == 0
    with own_world.head() as head, pytest.raises(VaultDenied) as refused:
        head.list_grants()
    assert refused.value.rule == "vault.login"


def test_the_node_role_is_not_made_without_ca_and_names(own_bao: OpenBao, build: Callable[[OpenBao], World]) -> None:
    world = build(own_bao)
    for options in ((), ("--node-ca", str(world.node_ca.certificate)), ("--node-name", "n*")):
        with pytest.raises(UsageError, match="cannot be made"):
            world.init(*options)
    assert own_bao.status("GET", NODE_ROLE)[0] == 404


@pytest.mark.parametrize("kind", ["kv", "pki"])
def test_a_mount_of_another_kind_is_never_replaced(
    own_bao: OpenBao, build: Callable[[OpenBao], World], kind: str
) -> None:
    own_bao.request("POST", "sys/mounts/secure-slurm-grants", {"type": kind})
    with pytest.raises(Refused) as refused:
        build(own_bao).first_init()
    assert refused.value.rule == "vault.mount"


def test_another_clusters_mounts_and_roles_are_left_alone(own_world: World) -> None:
    text = own_world.site_file.read_text()
    own_world.site_file.write_text(text.replace("name: test", "name: other"))
    with pytest.raises(Refused, match="another cluster"):
        own_world.init()
    own_world.site_file.write_text(
        text.replace("name: test", "name: other").replace(
            "  timeout:", "  transit_mount: t2\n  grants_mount: g2\n  timeout:"
        )
    )
    with pytest.raises(Refused) as refused:
        own_world.init()
    assert refused.value.rule == "vault.role"


def test_the_files_are_as_open_as_they_must_be(own_world: World) -> None:
    secret_id = own_world.directory / "secret-id"
    role_id = own_world.directory / "role-id"
    assert stat.S_IMODE(secret_id.stat().st_mode) == 0o600
    assert stat.S_IMODE(role_id.stat().st_mode) == 0o644
    before = secret_id.read_text()
    assert own_world.init() == 0
    assert secret_id.read_text() == before
    assert own_world.init("--secret-id-out", str(secret_id)) == 0
    assert secret_id.read_text() != before
    role_id.write_text("another\n")
    assert own_world.init("--check") == 1
    assert own_world.init() == 0
    with own_world.head() as head:
        assert head.list_grants() == []
    assert not [file for file in own_world.directory.iterdir() if file.name.startswith(".")]


def test_no_secret_id_is_made_when_its_file_cannot_be_written(own_world: World) -> None:
    def count() -> int:
        status, answer = own_world.bao.status("LIST", f"{HEAD_ROLE}/secret-id")
        return len(answer["data"]["keys"]) if status == 200 else 0

    before = count()
    with pytest.raises(ConfigError):
        own_world.init("--secret-id-out", str(own_world.directory / "none" / "secret-id"))
    assert count() == before == 1


def test_no_secret_is_printed(own_world: World, capfd: pytest.CaptureFixture[str]) -> None:
    secret_id = own_world.directory / "secret-id"
    own_world.init("--json", "--secret-id-out", str(secret_id))
    own_world.init("--secret-id-out", str(secret_id))
    out, err = capfd.readouterr()
    assert secret_id.read_text().strip() not in out + err
    assert own_world.bao.root_token not in out + err


def run_with(world: World, *options: str) -> int:
    parser = argparse.ArgumentParser()
    vault_init.add_parser(parser.add_subparsers())
    args = parser.parse_args(["vault", "init", "--owner", "root", *options])
    args.config = str(world.site_file)
    return vault_init.run(args)


def test_the_token_comes_from_standard_input(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(own_world.bao.root_token + "\n"))
    assert run_with(own_world, "--check") == 0


@pytest.mark.parametrize("text", ["", "\n", "two words\n", "a\x00b\n"])
def test_no_token_no_work_even_if_the_environment_has_one(
    own_world: World, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", own_world.bao.root_token)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(UsageError):
        run_with(own_world, "--check")


def test_a_wrong_token_is_refused_and_not_repeated(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("s.wrongwrongwrong\n"))
    with pytest.raises(VaultDenied) as refused:
        run_with(own_world)
    assert "wrongwrong" not in str(refused.value) + repr(refused.value) + refused.value.advice


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_token_file_that_others_can_open_is_refused(own_world: World, mode: int) -> None:
    file = own_world.directory / "open-token"
    file.write_text(own_world.bao.root_token)
    file.chmod(mode)
    with pytest.raises(ConfigError):
        run_with(own_world, "--token-file", str(file))


def test_a_token_on_the_command_line_is_not_understood(own_world: World) -> None:
    with pytest.raises(SystemExit):
        run_with(own_world, "--token", own_world.bao.root_token)


@pytest.mark.parametrize(
    "options", [("--node-name", "a_b"), ("--node-name", ""), ("--node-cidr", "10.0.0.1/8"), ("--head-cidr", "x")]
)
def test_patterns_and_addresses_that_mean_something_else_are_refused(
    own_world: World, options: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError):
        own_world.init(*options)


def test_a_ca_file_that_is_not_a_ca_is_refused(own_world: World, tmp_path: Path) -> None:
    pair = own_world.node_ca.client("n7", tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(own_world.node_ca.certificate.read_bytes() + pair.private_key.read_bytes())
    empty = tmp_path / "empty.pem"
    empty.touch()
    for file in (pair.certificate, pair.private_key, both, empty):
        with pytest.raises(ConfigError):
            own_world.init("--node-ca", str(file))


def test_check_and_a_new_secret_id_exclude_each_other(own_world: World) -> None:
    with pytest.raises(UsageError):
        own_world.init("--check", "--secret-id-out", str(own_world.directory / "x"))


def test_an_unknown_owner_is_refused_before_anything_is_made(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # only root gives files away
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(UsageError, match="no user"):
        own_world.init("--secret-id-out", str(own_world.directory / "x"), "--owner", "no-such-user-here")
