"""secure-slurm audit certificate: what is refused before anybody is asked, and the check without any service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from admin import certificate_cmd
from admin.main import main
from audit import certificate as form
from audit.chain import Chain
from keys.certificate import pem, seal
from tests.unit.audit.test_certificate import good
from tests.unit.hooks.conftest import SITE


@pytest.fixture
def site(tmp_path: Path) -> str:
    path = tmp_path / "secure-slurm.yaml"
    path.write_text(SITE.format(user="root", folder=tmp_path))
    path.chmod(0o644)
    return str(path)


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and the key to check it with."""
    key = Ed25519PrivateKey.generate()
    document, public = tmp_path / "17.json", tmp_path / "key.pub"
    document.write_text(json.dumps(seal(good(), key.sign(form.signed_bytes(good())), 1)))
    public.write_text(pem(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)))
    return document, public


def check(job: int, document: Path, public: Path, *more: str) -> int:
    return main(["audit", "certificate", str(job), "--verify", str(document), "--public-key", str(public), *more])


def test_a_good_one(signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(17, *signed) == 0
    out = capsys.readouterr().out
    assert "signed, and not changed since" in out
    assert "absent (404) at 2026-11-21T20:42:00.000Z" in out
    assert "aes-xts-plain64 with 512 bits: absent at 2026-11-21T20:41:07.000000Z" in out
    assert "not confirmed by the node" in out
    assert form.BACKUPS in out
    assert check(17, *signed, "--json") == 0
    assert json.loads(capsys.readouterr().out) == good()


def test_a_changed_one(signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    document, public = signed
    document.write_text(document.read_text().replace(form.UNCONFIRMED, form.LOST))
    assert check(17, document, public) == 1
    assert "was changed, or was signed with another key" in capsys.readouterr().err


def test_of_another_job(signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(18, *signed) == 1
    assert "of job 17, not of job 18" in capsys.readouterr().err


def test_files_that_are_not_there_or_too_large(
    signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, public = signed
    assert check(17, tmp_path / "absent", public) == 3
    assert check(17, document, tmp_path / "absent") == 3
    monkeypatch.setattr(form, "MAX_BYTES", 10)
    assert check(17, document, public) == 2


def test_words_that_do_not_go_together(signed: tuple[Path, Path]) -> None:
    document, public = signed
    assert main(["audit", "certificate", "17", "--verify", str(document)]) == 2
    assert main(["audit", "certificate", "17", "--public-key", str(public)]) == 2
    for job in ("0", "x", "-1", "1_2", "99999999999"):
        with pytest.raises(SystemExit):
            main(["audit", "certificate", job])


def test_a_job_that_the_trail_does_not_know(site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").touch()
    assert main(["--config", site, "audit", "certificate", "17", str(tmp_path / "x.jsonl")]) == 1
    assert "has no key of job 17" in capsys.readouterr().err


def test_more_keys_than_a_message_can_hold(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trail").mkdir(mode=0o750)
    chain = Chain(tmp_path / "trail", "lifecycle", "head")
    for node in ("n1", "n2"):
        key = f"{node}_test-17-{'ab' * 8}"
        chain.append("key.create", durable=True, job=17, node=node, incarnation="a" * 32, key=key)
    monkeypatch.setattr(certificate_cmd, "MOST_KEYS", 1)
    assert main(["--config", site, "audit", "certificate", "17", str(tmp_path / "trail")]) == 1
    assert "had 2 keys" in capsys.readouterr().err
    monkeypatch.setattr(certificate_cmd, "MOST_KEYS", 2)
    # as far as the daemon, who is not there
    assert main(["--config", site, "audit", "certificate", "17", str(tmp_path / "trail")]) == 4


def test_nobody_answers(site: str) -> None:
    assert main(["--config", site, "audit", "public-key"]) == 4


def test_nodes_that_are_lost(tmp_path: Path) -> None:
    script = tmp_path / "sinfo"
    script.write_text("#!/bin/sh\nprintf 'n1 idle\\nn2 down*\\nn3 down\\nn4 idle*\\nn5 drained\\nodd\\n'\n")
    script.chmod(0o755)
    assert certificate_cmd._lost(str(tmp_path), {"n1", "n2", "n3", "n4", "n5"}) == {"n2", "n3", "n4"}
    assert certificate_cmd._lost(str(tmp_path), set()) == set()
    # Slurm does not answer: nothing is said of the node
    assert certificate_cmd._lost(str(tmp_path / "absent"), {"n1"}) == set()
