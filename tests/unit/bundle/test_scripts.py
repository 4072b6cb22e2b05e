"""The scripts around the bundle: well formed, agreed with each other, and what the site's archive must not hold."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ACTION = ROOT / "conf/parallelcluster/actions/secure-slurm-action.sh"
SITE = ROOT / "bundle/site.sh"
SH = [ACTION, SITE, ROOT / "install.sh", ROOT / "uninstall.sh", *sorted((ROOT / "bundle").glob("*.sh"))]


@pytest.mark.parametrize("script", SH, ids=lambda path: path.name)
def test_well_formed(script: Path) -> None:
    shell = script.read_text().splitlines()[0].rpartition("/")[2] if script.name != "offline.sh" else "sh"
    for each in {shell, "bash"}:
        done = subprocess.run([each, "-n", str(script)], check=False, timeout=60, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_both_ends_take_the_same_files() -> None:
    lists = [re.search(r"^ *(secure-slurm\.yaml\|.*)\) ;;$", path.read_text(), re.MULTILINE) for path in (ACTION, SITE)]
    assert lists[0] and lists[1]
    assert lists[0][1] == lists[1][1]
    # what the shipped site file names and what is no secret may travel
    for secret in ("record.key", "ldap-password", "vault-secret-id", "vault-role-id", "link.key", "node-n1.key"):
        assert secret not in lists[0][1]


def test_nothing_of_an_archive_is_used_before_it_is_verified() -> None:
    """By the text: what unpacks or reads an archive is called below the line that verifies."""
    text = ACTION.read_text()
    verified = text.index('  verify "$work/$each.tar.gz" "$url"\ndone')
    calls = [found.start() for found in re.finditer(r"^(?!unpack\(\)).*\bunpack \"", text, re.MULTILINE)]
    assert calls
    assert min(calls) > verified
    assert min(found.start() for found in re.finditer(r'sh "\$source/install', text)) > verified


@pytest.mark.parametrize("script", [ACTION, ROOT / "install.sh", ROOT / "uninstall.sh", ROOT / "bundle/offline.sh"])
def test_root_imports_nothing_from_where_it_stands(script: Path) -> None:
    """By the text: each start of a Python is isolated, for "-c" and "-m" look in the current folder first."""
    started = re.findall(r'(?:\$python|\$1|\$s3|\$verifier|/python3)" (-[Icm])\b', script.read_text())
    assert started
    assert set(started) == {"-I"}


def test_who_is_made_is_removed() -> None:
    made, removed = (ROOT / "requirements/accounts.sh").read_text(), (ROOT / "uninstall.sh").read_text()
    accounts = set(re.findall(r"^account (\S+)", made, re.MULTILINE))
    groups = set(re.findall(r"^group (\S+)", made, re.MULTILINE))
    loops = [set(names.split()) for names in re.findall(r"^for name in (.*); do$", removed, re.MULTILINE)]
    assert accounts and groups
    assert loops == [accounts, groups]


@pytest.mark.parametrize("script", ["tests/testbed/root.sh", "tests/testbed/venv.sh", "bundle/root.sh"])
def test_a_cached_root_is_not_used_when_what_it_was_made_of_has_changed(script: str) -> None:
    """Each file of the checkout that is copied into it, and the script, are part of the key in its name."""
    text = (ROOT / script).read_text()
    copied = re.findall(r'"\$(?:top|here|lock)[^"]*"', "".join(re.findall(r"^ *cp .*$", text, re.MULTILINE)))
    key = "".join(re.findall(r"^ *(?:recipe|key)=.*$", text, re.MULTILINE))
    assert copied
    for each in (*copied, '"${BASH_SOURCE[0]}"'):
        assert each in key


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)], check=True, timeout=60)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "site"
    path.mkdir()
    for name in ("secure-slurm.yaml", "policy.yaml"):
        shutil.copy(ROOT / "conf" / name, path)
    return path


def site(key: Path, folder: Path, serial: str = "1", out: str = "site.tar.gz") -> subprocess.CompletedProcess[str]:
    argv = [str(SITE), str(key), str(folder), serial, str(folder.parent / out)]
    return subprocess.run(argv, check=False, timeout=60, capture_output=True, text=True)


class TestSite:
    def test_the_same_twice_and_signed(self, key: Path, folder: Path) -> None:
        first = site(key, folder)
        assert first.returncode == 0, first.stderr
        packed = folder.parent / "site.tar.gz"
        before = packed.read_bytes(), packed.with_name("site.tar.gz.sig").read_bytes()
        assert len(before[1]) == 64
        assert site(key, folder).stdout == first.stdout
        assert (packed.read_bytes(), packed.with_name("site.tar.gz.sig").read_bytes()) == before
        assert len(base64.b64decode(first.stdout.strip(), validate=True)) == 32
        with tarfile.open(packed) as tar:
            assert {each for each in tar.getnames() if "." in each} == {"site/secure-slurm.yaml", "site/policy.yaml"}

    @pytest.mark.parametrize(
        "name",
        ["record.key", "vault-secret-id", "ldap-password", "node-n1.key", "notes.txt", ".hidden", "ec2/x.key", "a b"],
    )
    def test_what_may_not_lie_in_a_bucket(self, key: Path, folder: Path, name: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        done = site(key, folder)
        assert done.returncode == 1
        assert "does not belong into a bucket" in done.stderr
        assert not (folder.parent / "site.tar.gz").exists()

    def test_a_private_key_under_an_innocent_name(self, key: Path, folder: Path) -> None:
        shutil.copy(key, folder / "vault-ca.crt")
        assert "holds a private key" in site(key, folder).stderr

    def test_a_link(self, key: Path, folder: Path) -> None:
        (folder / "vault-ca.crt").symlink_to("/etc/passwd")
        assert "no plain file" in site(key, folder).stderr

    @pytest.mark.parametrize("name", ["secure-slurm.yaml", "policy.yaml"])
    def test_what_must_be_there(self, key: Path, folder: Path, name: str) -> None:
        (folder / name).unlink()
        assert f"there is no {name}" in site(key, folder).stderr

    @pytest.mark.parametrize("serial", ["", "0", "01", "-1", "x", "1;2"])
    def test_serials(self, key: Path, folder: Path, serial: str) -> None:
        assert site(key, folder, serial).returncode == 1

    @pytest.mark.parametrize("out", ["site-2.tar.gz", "site.tgz", "other.tar.gz"])
    def test_names(self, key: Path, folder: Path, out: str) -> None:
        assert site(key, folder, "1", out).returncode == 1

    def test_another_kind_of_key(self, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "rsa.pem"
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "RSA", "-out", str(path)], check=True, timeout=60, capture_output=True
        )
        assert "no Ed25519 key" in site(path, folder).stderr
