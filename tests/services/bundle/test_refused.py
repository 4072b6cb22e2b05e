"""What a machine must not take: each is refused before anything of it is unpacked, let alone run."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.bundle.archives import odd, small, write
from tests.services.bundle.conftest import BUNDLE, SYSTEMS, Bucket, Done, Keys, Machine

VERSION = "0.1.0"
TOP = f"secure-slurm-{VERSION}"


@pytest.fixture(scope="module", params=SYSTEMS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine for all of these: none of them may change it, and each test looks that it did not."""
    machine = Machine(BUNDLE / str(request.param), tmp_path_factory.mktemp("refused") / "out")
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def little(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose installer only leaves a mark."""
    path = tmp_path_factory.mktemp("little") / made.name
    write(path, small(VERSION, filler=os.urandom(4000)))
    return path


def test_the_same_is_run_when_nothing_is_wrong(machine: Machine, bucket: Bucket, little: Path) -> None:
    """The mark that the others look for is there then: what they refuse would have run."""
    shutil.copy(little, bucket.folder / bucket.name)
    bucket.sign(bucket.name)
    machine.action("login", "configured", bucket.offer())
    assert machine.there("/canary")


@pytest.fixture(scope="module")
def good(keys: Keys, little: Path, site_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """A bucket as it should be, with a small bundle."""
    return Bucket(tmp_path_factory.mktemp("good") / "out", keys, little, site_source)


@pytest.fixture
def refusing(shared: Machine, good: Bucket) -> Iterator[tuple[Machine, Bucket]]:
    """The machine and such a bucket. Afterwards the machine is as it was."""
    bucket = good.copied(shared.shared)
    yield shared, bucket
    shared.untouched()
    for path in bucket.folder.glob("*.*"):
        path.unlink()


def flip(path: Path, where: int) -> None:
    with path.open("r+b") as file:
        file.seek(where, os.SEEK_END if where < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def swap(one: Path, other: Path) -> None:
    other.write_bytes(one.read_bytes())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte in the middle": (lambda out: flip(out / f"{TOP}.tar.gz", 3000), "not by the key"),
    "its first byte": (lambda out: flip(out / f"{TOP}.tar.gz", 0), "not by the key"),
    "its last byte": (lambda out: flip(out / f"{TOP}.tar.gz", -1), "not by the key"),
    "cut short": (lambda out: cut(out / f"{TOP}.tar.gz", 3000), "not by the key"),
    "empty": (lambda out: cut(out / f"{TOP}.tar.gz", 0), "not by the key"),
    "gone": (lambda out: (out / f"{TOP}.tar.gz").unlink(), "there is no"),
    "no signature": (lambda out: (out / f"{TOP}.tar.gz.sig").unlink(), "there is no"),
    "an empty signature": (lambda out: cut(out / f"{TOP}.tar.gz.sig", 0), "64 bytes"),
    "half a signature": (lambda out: cut(out / f"{TOP}.tar.gz.sig", 32), "64 bytes"),
    "a bit of the signature": (lambda out: flip(out / f"{TOP}.tar.gz.sig", 3), "not by the key"),
    "a bit of its other half": (lambda out: flip(out / f"{TOP}.tar.gz.sig", 40), "not by the key"),
    "a signature of zeros": (lambda out: (out / f"{TOP}.tar.gz.sig").write_bytes(bytes(64)), "not by the key"),
    "another file's": (lambda out: swap(out / "site.tar.gz.sig", out / f"{TOP}.tar.gz.sig"), "not by the key"),
    "another file": (lambda out: swap(out / "site.tar.gz", out / f"{TOP}.tar.gz"), "not by the key"),
    "no site": (lambda out: (out / "site.tar.gz").unlink(), "there is no"),
    "no signature of the site": (lambda out: (out / "site.tar.gz.sig").unlink(), "there is no"),
    "a byte of the site": (lambda out: flip(out / "site.tar.gz", 99), "not by the key"),
}


def refused(done: Done, words: str) -> None:
    assert done.code == 1, done
    assert words in done.err, done
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", BROKEN)
def test_broken(refusing: tuple[Machine, Bucket], name: str) -> None:
    machine, bucket = refusing
    broken, words = BROKEN[name]
    broken(bucket.folder)
    refused(machine.action("head", "start", bucket.offer()), words)


@pytest.mark.parametrize("stage", ["start", "configured"])
@pytest.mark.parametrize("role", ["head", "login", "compute"])
def test_every_role_and_stage_verifies(refusing: tuple[Machine, Bucket], role: str, stage: str, stranger: Keys) -> None:
    machine, bucket = refusing
    bucket.sign(bucket.name, stranger)
    refused(machine.action(role, stage, bucket.offer()), "not by the key")


def test_the_key_is_the_configurations(refusing: tuple[Machine, Bucket], stranger: Keys) -> None:
    machine, bucket = refusing
    refused(machine.action("head", "start", bucket.offer()._replace(key=stranger.public)), "not by the key")


@pytest.mark.parametrize(
    "key", ["", "x", "A" * 43, "A" * 44, "A" * 42 + "==", "!" * 43 + "=", "A" * 59 + "=", "$(touch /canary)"]
)
def test_what_is_no_key(refusing: tuple[Machine, Bucket], key: str) -> None:
    machine, bucket = refusing
    refused(machine.action("head", "start", bucket.offer()._replace(key=key)), "public key is not 32 bytes")


MEMBERS: dict[str, tuple[list[tarfile.TarInfo], str]] = {
    "upwards": ([odd(f"{TOP}/../../../etc/cron.d/x")], "leads elsewhere"),
    "upwards at once": ([odd("../canary")], "leads elsewhere"),
    "absolute": ([odd("/canary")], "leads elsewhere"),
    "another folder": ([odd("elsewhere/file")], "leads elsewhere"),
    "the same letters": ([odd(f"{TOP}x/file")], "leads elsewhere"),
    "a dot for a version's dot": ([odd("secure-slurm-0x1.0/file")], "leads elsewhere"),
    "hidden": ([odd(f"{TOP}/.profile")], "leads elsewhere"),
    "a line break": ([odd(f"{TOP}/a\nb")], "leads elsewhere"),
    "a blank": ([odd(f"{TOP}/a b")], "leads elsewhere"),
    "a link": ([odd(f"{TOP}/link", tarfile.SYMTYPE, "/etc")], "other than files"),
    "a link and a file through it": (
        [odd(f"{TOP}/link", tarfile.SYMTYPE, "/"), odd(f"{TOP}/link/canary")],
        "other than files",
    ),
    "a hard link": ([odd(f"{TOP}/link", tarfile.LNKTYPE, "/etc/passwd")], "other than files"),
    "a device": ([odd(f"{TOP}/null", tarfile.CHRTYPE)], "other than files"),
    "a pipe": ([odd(f"{TOP}/pipe", tarfile.FIFOTYPE)], "other than files"),
    "one name twice": ([odd(f"{TOP}/install.sh")], "one name twice"),
    "a file that is not listed": ([odd(f"{TOP}/more")], "SHA256SUMS lists"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_signed_and_still_not_unpacked(refusing: tuple[Machine, Bucket], name: str) -> None:
    """Whoever holds the key can do harm enough; a bundle that was made wrongly must not do it by accident."""
    machine, bucket = refusing
    members, words = MEMBERS[name]
    write(bucket.folder / bucket.name, small(VERSION, members))
    bucket.sign(bucket.name)
    refused(machine.action("head", "start", bucket.offer()), words)


def test_a_file_that_is_not_what_the_list_says(refusing: tuple[Machine, Bucket]) -> None:
    machine, bucket = refusing
    write(
        bucket.folder / bucket.name,
        small(VERSION, SHA256SUMS=f"{'0' * 64}  VERSION\n{'0' * 64}  install.sh\n".encode()),
    )
    bucket.sign(bucket.name)
    refused(machine.action("head", "start", bucket.offer()), "SHA256SUMS lists")


def test_an_older_bundle_under_the_new_name(refusing: tuple[Machine, Bucket]) -> None:
    """What somebody with the bucket but without the key can do to machines that are new: they know the version."""
    machine, bucket = refusing
    later = "secure-slurm-0.2.0.tar.gz"
    swap(bucket.folder / bucket.name, bucket.folder / later)
    swap(bucket.folder / f"{bucket.name}.sig", bucket.folder / f"{later}.sig")
    refused(machine.action("head", "start", bucket.offer(later)), "leads elsewhere")
    write(bucket.folder / later, small("0.2.0", VERSION=b"0.1.0\n"))
    bucket.sign(later)
    refused(machine.action("head", "start", bucket.offer(later)), "it was renamed")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "five arguments"),
        (["head", "start", "{bundle}", "{key}"], "five arguments"),
        (["node", "start", "{bundle}", "{key}", "{site}"], "no such role"),
        (["head", "stop", "{bundle}", "{key}", "{site}"], "no such stage"),
        (["head", "start", "file:///out/secure-slurm.tar.gz", "{key}", "{site}"], "not called"),
        (["head", "start", "file:///out/secure-slurm-1.0.tar.gz", "{key}", "{site}"], "not called"),
        (["head", "start", "file:///out/secure-slurm-0.1.0\n/x.tar.gz", "{key}", "{site}"], "not called"),
        (["head", "start", "file:///out/secure-slurm-0.1.0\n0.tar.gz", "{key}", "{site}"], "not called"),
        (["head", "start", "file:///out/secure-slurm-0.1.0;x.tar.gz", "{key}", "{site}"], "not called"),
        (["head", "start", "{bundle}", "{key}", "file:///out/other.tar.gz"], "not called"),
        (["head", "start", "{bundle}", "{key}", "file:///out/site-01.tar.gz"], "not called"),
        (["head", "start", "https://x/secure-slurm-0.1.0.tar.gz", "{key}", "{site}"], "neither s3:// nor file:///"),
        (["head", "start", "s3://bucket", "{key}", "{site}"], "not called"),
        # nothing here reads S3: that must not look like success
        (["head", "start", "s3://bucket/secure-slurm-0.1.0.tar.gz", "{key}", "{site}"], "no aws command and no boto3"),
    ],
)  # fmt: skip
def test_arguments(refusing: tuple[Machine, Bucket], arguments: list[str], words: str) -> None:
    machine, bucket = refusing
    offer = bucket.offer()._asdict()
    action = "/src/conf/parallelcluster/actions/secure-slurm-action.sh"
    refused(machine.run(action, *(each.format(**offer) for each in arguments)), words)


def test_somebody_who_is_not_root(refusing: tuple[Machine, Bucket]) -> None:
    machine, bucket = refusing
    offer = bucket.offer()
    action = ["sh", "/src/conf/parallelcluster/actions/secure-slurm-action.sh", "head", "start", *offer]
    refused(machine.run("setpriv", "--reuid=65534", "--clear-groups", *action), "as root")
