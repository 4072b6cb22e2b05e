"""The archive depends on nothing but names, modes and bytes, and holds nothing that nobody put there."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from bundle import pack, sbom

ROOT = Path(__file__).parents[3]
ACTION = ROOT / "conf/parallelcluster/actions/secure-slurm-action.sh"


def wheel(name: str, version: str, *lines: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as opened:
        meta = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines]
        opened.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(meta) + "\n")
    return raw.getvalue()


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of wheels and of what was compiled, as make.sh fills them."""
    wheels, compiled = tmp_path / "wheels", tmp_path / "compiled"
    wheels.mkdir()
    (wheels / "FOR").write_text("Python 3.11 on x86_64\n")
    (wheels / ".complete").write_text("")
    (wheels / "pip-26.3-py3-none-any.whl").write_bytes(wheel("pip", "26.3", "License-Expression: MIT"))
    for arch in ("x86_64", "aarch64"):
        name = f"cryptography-50.0.2-cp311-abi3-manylinux_2_28_{arch}.whl"
        (wheels / name).write_bytes(
            wheel("cryptography", "50.0.2", "License: Apache-2.0 OR BSD-3-Clause", f"X: {arch}")
        )
    for name, data in {
        "lua/5.4/x86_64/socket/unix.so": b"unix",
        "lua/LICENSE.luasocket": b"MIT",
        "ldap/debian-12/x86_64/python_ldap-3.4.8-cp311-cp311-linux_x86_64.whl": wheel(
            "python-ldap", "3.4.8", "Classifier: License :: OSI Approved :: Python Software Foundation License"
        ),
    }.items():
        path = compiled / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (compiled / "lua/5.4/x86_64/socket/unix.so").chmod(0o755)
    return wheels, compiled


def test_the_same_bytes_from_another_place_and_time(parts: tuple[Path, Path], tmp_path: Path) -> None:
    wheels, compiled = parts
    first = pack.archive(pack.contents(ROOT, wheels, compiled))
    copy = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", str(wheels), str(compiled), str(tmp_path / "x")], check=False, timeout=60)
    subprocess.run(["mkdir", str(copy)], check=True, timeout=60)
    subprocess.run(["cp", "-r", str(wheels), str(compiled), str(copy)], check=True, timeout=60)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    (copy / "compiled/lua/5.4/x86_64/socket/unix.so").chmod(0o644)
    assert pack.archive(pack.contents(ROOT, copy / "wheels", copy / "compiled")) == first


def test_nobody_and_no_time_is_in_it(parts: tuple[Path, Path]) -> None:
    packed = pack.archive(pack.contents(ROOT, *parts))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        members = tar.getmembers()
    assert {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in members} == {
        (0, 0, "", "", pack.EPOCH)
    }
    assert {each.mode for each in members} == {0o644, 0o755}
    assert all(each.isreg() for each in members)
    assert [each.name for each in members] == sorted(each.name for each in members)
    assert packed[4:8] == pack.EPOCH.to_bytes(4, "little")
    assert gzip.decompress(packed)


def test_what_is_in_it(parts: tuple[Path, Path]) -> None:
    files = pack.contents(ROOT, *parts)
    assert {
        "install.sh",
        "uninstall.sh",
        "bundle/offline.sh",
        "conf/vault/node.hcl",
        "slurm_hooks/job_submit.lua",
    } <= set(files)
    assert {"requirements/runtime.lock", "requirements/accounts.sh", "wheels/FOR", "VERSION", "sbom.cdx.json"} <= set(
        files
    )
    assert files["install.sh"].executable
    assert not files["lua/5.4/x86_64/socket/unix.so"].executable
    tops = {name.partition("/")[0] for name in files}
    assert not tops & {"tests", "bench", ".git", "build"}
    assert not [name for name in files if re.search(r"__pycache__|\.pyc$|/\.|~$", name)]


def test_the_list_of_checksums(parts: tuple[Path, Path]) -> None:
    files = pack.contents(ROOT, *parts)
    lines = files["SHA256SUMS"].data.decode().splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    assert set(listed) == set(files) - {"SHA256SUMS"}
    assert all(hashlib.sha256(files[name].data).hexdigest() == digest for name, digest in listed.items())


def test_every_name_is_one_that_the_action_takes(parts: tuple[Path, Path]) -> None:
    found = re.search(r'grep -qEv "\^\$2(.*)\\\$" ', ACTION.read_text())
    assert found
    allowed = re.compile(found[1])
    for name in pack.contents(ROOT, *parts):
        assert allowed.fullmatch(f"/{name}"), name
    for name in ("/../x", "/a/../x", "//x", "/.x", "/a b", "/a\nb", "/a;b", "/a/.."):
        assert not allowed.fullmatch(name), name


@pytest.mark.parametrize(
    "gone", ["wheels/pip*", "wheels/cryptography*", "compiled/lua/5.4/x86_64/socket/unix.so", "compiled/ldap/*/*/*"]
)
def test_what_is_missing_is_said(parts: tuple[Path, Path], gone: str) -> None:
    for path in parts[0].parent.glob(gone):
        path.unlink()
    with pytest.raises(pack.PackError, match="nothing like"):
        pack.contents(ROOT, *parts)


def test_links_and_two_of_a_name_are_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    wheels, compiled = parts
    extra = tmp_path / "extra"
    other = extra / "ldap/debian-12/x86_64/python_ldap-3.4.8-cp311-cp311-linux_x86_64.whl"
    other.parent.mkdir(parents=True)
    other.write_bytes(wheel("python-ldap", "3.4.9"))
    with pytest.raises(pack.PackError, match="two different"):
        pack.contents(ROOT, wheels, compiled, extra)
    other.unlink()
    other.symlink_to("/etc/passwd")
    with pytest.raises(pack.PackError, match="no plain file"):
        pack.contents(ROOT, wheels, compiled, extra)


def test_what_other_systems_compiled_is_added(parts: tuple[Path, Path], tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    name = "ldap/rhel-9/aarch64/python_ldap-3.4.8-cp312-cp312-linux_aarch64.whl"
    (extra / name).parent.mkdir(parents=True)
    (extra / name).write_bytes(wheel("python-ldap", "3.4.8"))
    assert name in pack.contents(ROOT, *parts, extra)


@pytest.mark.parametrize("version", ["1.0", "1.0.0rc1", "", "1.2.3.4"])
def test_a_version_that_cannot_be_compared(version: str) -> None:
    with pytest.raises(pack.PackError, match="version"):
        pack.version_of({"conf/version.py": pack.Entry(f'__version__ = "{version}"\n'.encode())})


class TestBill:
    """CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json/"""

    @pytest.fixture
    def bill(self, parts: tuple[Path, Path]) -> dict[str, object]:
        return dict(json.loads(pack.contents(ROOT, *parts)["sbom.cdx.json"].data))

    def test_form(self, bill: dict[str, object]) -> None:
        assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
        assert re.fullmatch(
            r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", str(bill["serialNumber"])
        )
        assert "timestamp" not in json.dumps(bill)

    def test_packages(self, parts: tuple[Path, Path]) -> None:
        files = pack.contents(ROOT, *parts)
        bill = json.loads(files["sbom.cdx.json"].data)
        found = {each["purl"]: each for each in bill["components"]}
        assert list(found) == [
            "pkg:pypi/python-ldap@3.4.8",
            "pkg:pypi/cryptography@50.0.2",
            "pkg:pypi/pip@26.3",
            "pkg:luarocks/luasocket@3.1.0",
        ]
        licences = [each["licenses"] for each in found.values()]
        assert licences == [
            [{"license": {"name": "Python Software Foundation License"}}],
            [{"license": {"name": "Apache-2.0 OR BSD-3-Clause"}}],
            [{"expression": "MIT"}],
            [{"license": {"id": "MIT"}}],
        ]
        both = found["pkg:pypi/cryptography@50.0.2"]["components"]
        assert len(both) == 2
        for part in both:
            digest = hashlib.sha256(files[part["name"]].data).hexdigest()
            assert part["hashes"] == [{"alg": "SHA-256", "content": digest}]

    def test_references_are_there_and_once(self, parts: tuple[Path, Path]) -> None:
        bill = json.loads(pack.contents(ROOT, *parts)["sbom.cdx.json"].data)
        refs = [bill["metadata"]["component"]["bom-ref"]]
        for part in bill["components"]:
            refs += [part["bom-ref"], *(each["bom-ref"] for each in part["components"])]
        assert len(refs) == len(set(refs))
        named = {ref for each in bill["dependencies"] for ref in (each["ref"], *each.get("dependsOn", []))}
        assert named <= set(refs)

    def test_it_changes_with_what_is_in_it(self) -> None:
        one = sbom.document("1.0.0", {"install.sh": b"a"})
        assert one == sbom.document("1.0.0", {"install.sh": b"a"})
        assert one != sbom.document("1.0.0", {"install.sh": b"b"})


def test_luasocket_is_the_version_that_is_pinned() -> None:
    assert f"luasocket_{sbom.LUASOCKET}.orig.tar.gz" in (ROOT / "bundle/sources.txt").read_text()
