"""secure-slurm node manifest, sign-manifest and imds: what is refused, and that the key is never shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from admin import imds_cmd
from admin.imds_cmd import State, ruleset
from admin.main import main
from conf import hookconf
from keys import machine

KEY = ed25519.Ed25519PrivateKey.generate()
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
FINGERPRINT = "machine-id:" + "5e" * 32
SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head]}}
node:
  place_file: {folder}/place
  manifest: {{file: "{folder}/%n.manifest", public_key: {folder}/manifest.pub}}
vault: {{address: "https://vault.example:8200", ca_file: /etc/ca.crt}}
ldap:
  {{flavour: openldap, uris: ["ldaps://x"], ca_file: /etc/x, bind_dn: cn=x, bind_password_file: /etc/x, base: dc=x}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files = {"site.yaml": SITE.format(folder=tmp_path).encode(), "manifest.pub": public, "place": b"eu-central-1\n"}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "manifest.key").touch(mode=0o600)
    (tmp_path / "manifest.key").write_bytes(PRIVATE)
    return tmp_path


def sign(folder: Path, *more: str) -> int:
    return main(
        [
            *("--config", f"{folder}/site.yaml", "node", "sign-manifest", "--key", f"{folder}/manifest.key"),
            *("--node", "n1", "--region", "eu-central-1", "--machine", FINGERPRINT, *more),
        ]
    )


class TestSign:
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
    def test_a_key_that_others_may_read(self, folder: Path, mode: int, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "manifest.key").chmod(mode)
        assert sign(folder) == 3
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "chmod" in shown.err

    def test_a_key_behind_a_link(self, folder: Path) -> None:
        (folder / "manifest.key").rename(folder / "real")
        (folder / "manifest.key").symlink_to("real")
        assert sign(folder) == 3

    @pytest.mark.parametrize("text", [b"", b"junk", PRIVATE[:60], KEY.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)])  # fmt: skip
    def test_no_key(self, folder: Path, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "manifest.key").write_bytes(text)
        assert sign(folder) == 2
        assert "openssl genpkey" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [
            ["--node", "n_1"],
            ["--region", "EU"],
            ["--machine", "none"],
            ["--cluster", "../x"],
        ],
    )
    def test_values_that_fit_no_manifest(self, folder: Path, words: list[str]) -> None:
        assert sign(folder, *words) == 2

    @pytest.mark.parametrize("days", ["0", "-1", "1.5", "9999", "\u0663", "x"])
    def test_no_number_of_days(self, folder: Path, days: str) -> None:
        with pytest.raises(SystemExit) as caught:
            sign(folder, f"--days={days}")
        assert caught.value.code == 2

    def test_nothing_is_overwritten(self, folder: Path) -> None:
        assert sign(folder, "--out", f"{folder}/manifest.key") == 3
        assert (folder / "manifest.key").read_bytes() == PRIVATE

    def test_the_key_is_never_shown(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert sign(folder) == 0
        shown = capsys.readouterr()
        secret = PRIVATE.decode().split("\n")[1]
        assert secret not in shown.out + shown.err
        assert '"node":"n1"' in shown.out
        assert shown.out.count("\n") == 2

    def test_the_cluster_is_that_of_the_site_file_or_given(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert sign(folder) == 0
        assert '"cluster":"test"' in capsys.readouterr().out
        (folder / "site.yaml").unlink()
        assert sign(folder, "--cluster", "other") == 0
        assert '"cluster":"other"' in capsys.readouterr().out


class TestShow:
    @pytest.fixture(autouse=True)
    def fingerprint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(machine, "fingerprint", lambda kind: FINGERPRINT if kind == "machine-id" else None)

    def show(self, folder: Path, *more: str) -> int:
        return main(["--config", f"{folder}/site.yaml", "node", "manifest", "--node", "n1", *more])

    def test_root_only(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1001)
        assert self.show(folder) == 1

    def test_none(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.show(folder) == 1
        shown = capsys.readouterr().out
        assert FINGERPRINT in shown
        assert "product-uuid: none" in shown
        assert "problem: " in shown

    def test_another_machines(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert sign(folder, "--machine", "machine-id:" + "00" * 32, "--out", f"{folder}/n1.manifest") == 0
        assert self.show(folder) == 1
        assert sign(folder, "--machine", "product-uuid:" + "00" * 32, "--out", f"{folder}/other") == 0
        (folder / "other").replace(folder / "n1.manifest")
        assert self.show(folder) == 1
        assert capsys.readouterr().out.count("another machine") == 2

    def test_this_machines(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert sign(folder, "--out", f"{folder}/n1.manifest") == 0
        capsys.readouterr()
        assert self.show(folder, "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["problem"] is None
        assert shown["fingerprints"] == {"machine-id": FINGERPRINT, "product-uuid": None}
        assert "verified (machine-id)" in shown["verdict"]


class TestMetadataService:
    def test_root_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1001)
        assert main(["node", "imds"]) == 1
        assert main(["node", "imds", "--close"]) == 1

    @pytest.mark.parametrize(
        ("state", "code", "words"),
        [
            (State(True, ("169.254.169.254",)), 1, "open to users: 169.254.169.254"),
            (State(None, None), 1, "not known"),
            (State(True, None), 1, "not known"),
            (State(True, ()), 0, "closed to users"),
            (State(False, ()), 0, "users do not reach any"),
        ],
    )
    def test_what_is_seen_counts(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: State, code: int, words: str
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(imds_cmd, "state", lambda: state)
        assert main(["node", "imds"]) == code
        assert words in capsys.readouterr().out
        assert main(["node", "imds", "--json"]) == code
        assert (json.loads(capsys.readouterr().out)["problem"] is None) == (code == 0)

    def test_who_may_is_named_and_the_rest_refused(self) -> None:
        lines = [line.strip() for line in ruleset({995, 0}).splitlines()]
        for family, address in imds_cmd.ADDRESSES.items():
            allowed = lines.index(f"{family} daddr {address} meta skuid {{ 0, 995 }} accept")
            assert lines[allowed + 1] == f"{family} daddr {address} reject"
            # what is forwarded for a container has no owner here
            assert lines[lines.index("chain forward {") :].count(f"{family} daddr {address} reject") == 1

    def test_without_a_configuration_it_is_closed_all_the_more(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(imds_cmd, "HOOKS_JSON", str(tmp_path / "none"))
        monkeypatch.setattr(imds_cmd, "DAEMON", "no-such-account")
        assert imds_cmd._allowed_uids() == {0}
        assert "no rendered configuration" in capsys.readouterr().err

    def test_accounts_of_the_site(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        node = {"metadata_users": ["daemon", "no-such-account"]}
        monkeypatch.setattr(imds_cmd, "read_hook_config", lambda *_, **__: {"node": node})
        monkeypatch.setattr(imds_cmd, "DAEMON", "bin")
        found = imds_cmd._allowed_uids()
        assert len(found) == 3
        assert 0 in found
        assert "no account no-such-account" in capsys.readouterr().err
        assert hookconf.HOOKS_JSON == imds_cmd.HOOKS_JSON
