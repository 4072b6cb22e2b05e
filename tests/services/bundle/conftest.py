"""Machines that the bundle is installed on: roots of Debian 12 and 13, as root, in network namespaces without a route.

Each is a throw-away overlay over a root that was built without anything of secure-slurm (bundle/root.sh ami). The
bundles were made by `make bundle`; the tests sign them with a key of their own.
"""

from __future__ import annotations

import base64
import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bundle import pack
from tests.services.bundle.archives import read, write
from tests.testbed.machine import Bare, Done
from tests.testbed.need import need

SOURCE = Path(__file__).parents[3]
BUNDLE = Path("/bundle")
ACTION = SOURCE / "conf/parallelcluster/actions/secure-slurm-action.sh"
SYSTEMS = {"bookworm": "3.11", "trixie": "3.13"}


class Machine(Bare):
    """A machine that the action is run on; it sees clients of S3 in ``/s3``."""

    def __init__(self, root: Path, shared: Path) -> None:
        super().__init__(root, shared, binds="/bundle/s3:/s3")

    def action(self, role: str, stage: str, offer: Offer) -> Done:
        """Run the custom action as ParallelCluster does."""
        return self.run(
            "/src/conf/parallelcluster/actions/secure-slurm-action.sh", role, stage, offer.bundle, offer.key, offer.site
        )

    def version(self) -> str:
        """What is installed, by the program itself."""
        code = "import sys; sys.path.insert(0, '/opt/secure-slurm/lib'); import conf.version as v; print(v.__version__)"
        return self.sh(f'/opt/secure-slurm/venv/bin/python3 -I -c "{code}"').strip()

    def untouched(self) -> None:
        """Nothing of secure-slurm was laid out, and nothing out of an archive was run."""
        left = "/opt/secure-slurm /etc/secure-slurm /var/lib/secure-slurm /opt/slurm/etc/job_submit.lua /canary"
        assert self.sh(f"ls -d {left} 2>/dev/null || true; getent passwd secure-life || true; ls -A /var/tmp") == ""


class Keys(NamedTuple):
    """An Ed25519 key pair, made by openssl: the private key's file, and the public key as the action takes it."""

    private: Path
    public: str


class Offer(NamedTuple):
    """What a cluster's configuration names: the bundle, the key and the site's archive."""

    bundle: str
    key: str
    site: str


def make_keys(path: Path) -> Keys:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)], check=True, timeout=60)
    der = subprocess.run(
        ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"], check=True, capture_output=True, timeout=60
    )
    return Keys(path, base64.b64encode(der.stdout[-32:]).decode())


class Bucket:
    """A folder that the machine reads as a bucket would be read, and the bundle and site that lie in it."""

    def __init__(self, folder: Path, keys: Keys, made: Path, site: Path) -> None:
        self.folder = folder
        self.keys = keys
        self.made = made
        self.site_source = site
        folder.mkdir(parents=True, exist_ok=True)
        self.name = made.name
        shutil.copy(made, folder / made.name)
        self.sign(made.name)
        self.site(1)

    def copied(self, folder: Path) -> Bucket:
        """The same in another folder."""
        other = copy.copy(self)
        other.folder = folder
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return other

    def sign(self, name: str, keys: Keys | None = None) -> None:
        """Sign a file with bundle/sign.sh, as an admin does."""
        private = str((keys or self.keys).private)
        subprocess.run(
            [str(SOURCE / "bundle/sign.sh"), private, str(self.folder / name)],
            check=True,
            timeout=120,
            capture_output=True,
        )

    def site(self, serial: int, source: Path | None = None, name: str = "site.tar.gz") -> None:
        """Pack and sign the site's archive with bundle/site.sh."""
        argv = ["bundle/site.sh", self.keys.private, source or self.site_source, serial, self.folder / name]
        done = subprocess.run(
            [str(each) for each in argv], cwd=SOURCE, check=False, timeout=120, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def newer(self, version: str, **changed: bytes) -> str:
        """A later bundle beside the first, of the same files but for its version and what is ``changed``; its name."""
        files = read(self.made)
        source = files["conf/version.py"].data
        files["conf/version.py"] = pack.Entry(source.replace(b'"0.1.0"', f'"{version}"'.encode()))
        files["VERSION"] = pack.Entry(f"{version}\n".encode())
        for path, data in changed.items():
            files[path] = pack.Entry(data, path in files and files[path].executable)
        name = f"secure-slurm-{version}.tar.gz"
        write(self.folder / name, pack.archive(pack.seal(files)))
        self.sign(name)
        return name

    def offer(self, name: str = "", site: str = "site.tar.gz") -> Offer:
        """What the cluster's configuration says."""
        return Offer(f"file:///out/{name or self.name}", self.keys.public, f"file:///out/{site}")


@pytest.fixture(scope="session")
def made() -> Path:
    """The bundle that `make bundle` made."""
    need("unshare", "nsenter", "openssl", "ip", "mount", root=True)
    found = sorted(BUNDLE.glob("first/secure-slurm-*.tar.gz"))
    assert len(found) == 1, "run these tests with tests/testbed/bundle.sh"
    return found[0]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "bundle.pem")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Somebody else's key."""
    return make_keys(tmp_path_factory.mktemp("stranger") / "other.pem")


@pytest.fixture(scope="session")
def site_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's configuration: the shipped one."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("secure-slurm.yaml", "policy.yaml"):
        shutil.copy(SOURCE / "conf" / name, folder)
    argv = ["openssl", "req", "-x509", "-newkey", "ed25519", "-noenc", "-subj", "/CN=directory", "-keyout", "/dev/null"]
    subprocess.run([*argv, "-out", str(folder / "ldap-ca.crt")], check=True, timeout=60, capture_output=True)
    return folder


@pytest.fixture
def bucket(tmp_path: Path, keys: Keys, made: Path, site_source: Path) -> Bucket:
    return Bucket(tmp_path / "out", keys, made, site_source)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    """Both Debians, one after the other."""
    return str(request.param)


@pytest.fixture
def machine(system: str, bucket: Bucket) -> Iterator[Machine]:
    """A machine that has seen nothing yet; ``/out`` is the bucket."""
    started = Machine(BUNDLE / system, bucket.folder)
    yield started
    started.stop()
