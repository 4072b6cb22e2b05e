"""Who verifies where OpenSSL cannot: the same signatures are taken and refused; with nobody to verify, nothing is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services.bundle.archives import small, write
from tests.services.bundle.conftest import Bucket, Keys, Machine

# OpenSSL 1.1.1's pkeyutl knows no -rawin, and ends so; a FIPS provider without Ed25519 ends so as well
OLD_OPENSSL = "#!/bin/sh\necho 'pkeyutl: Unrecognized flag rawin' >&2\nexit 1\n"
# one that says yes to everything must not be believed either
YES_MAN = "#!/bin/sh\necho 'Signature Verified Successfully'\nexit 0\n"
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.fixture
def little(machine: Machine, bucket: Bucket) -> tuple[Machine, Bucket]:
    write(bucket.folder / bucket.name, small("0.1.0", filler=os.urandom(3000)))
    bucket.sign(bucket.name)
    return machine, bucket


def without_openssl(machine: Machine, instead: str) -> None:
    machine.sh("mv /usr/bin/openssl /usr/bin/openssl.away")
    if instead:
        machine.put("/usr/bin/openssl", instead)
        machine.sh("chmod 755 /usr/bin/openssl")


def edit(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def beyond(signature: bytearray) -> None:
    """The same signature with s + L, which a sloppy verifier takes (RFC 8032, 5.1.7: s < L)."""
    s = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    signature[32:] = s.to_bytes(32, "little")


CHANGES: dict[str, Callable[[bytearray], object]] = {
    "R": lambda signature: signature.__setitem__(5, signature[5] ^ 4),
    "s": lambda signature: signature.__setitem__(50, signature[50] ^ 4),
    "s + L": beyond,
    "zeros": lambda signature: signature.__setitem__(slice(None), bytes(64)),
    "R is no point": lambda signature: signature.__setitem__(slice(0, 32), b"\xff" * 32),
}


def changes_refused(machine: Machine, bucket: Bucket) -> tuple[Path, bytes]:
    """None of the changed signatures is taken; the signature's file, and what it holds when it is good."""
    signature = bucket.folder / f"{bucket.name}.sig"
    good = signature.read_bytes()
    for name, change in CHANGES.items():
        signature.write_bytes(good)
        edit(signature, change)
        done = machine.action("login", "configured", bucket.offer())
        assert (done.code, "not by the key" in done.err) == (1, True), (name, done)
    return signature, good


@pytest.mark.parametrize("openssl", [OLD_OPENSSL, YES_MAN, ""], ids=["old", "says yes", "none"])
def test_python_verifies(little: tuple[Machine, Bucket], stranger: Keys, openssl: str) -> None:
    machine, bucket = little
    without_openssl(machine, openssl)
    signature, good = changes_refused(machine, bucket)
    signature.write_bytes(good)
    edit(bucket.folder / bucket.name, lambda data: data.append(0))
    assert machine.action("login", "configured", bucket.offer()).code == 1
    edit(bucket.folder / bucket.name, lambda data: data.pop())
    bucket.sign(bucket.name, stranger)
    assert machine.action("login", "configured", bucket.offer()).code == 1
    machine.untouched()
    # and the true one is taken: its installer leaves the mark
    signature.write_bytes(good)
    machine.action("login", "configured", bucket.offer())
    assert machine.there("/canary")


def test_the_same_changes_for_openssl(little: tuple[Machine, Bucket]) -> None:
    machine, bucket = little
    signature, good = changes_refused(machine, bucket)
    machine.untouched()
    signature.write_bytes(good)
    machine.action("login", "configured", bucket.offer())
    assert machine.there("/canary")


def test_nobody_to_verify(little: tuple[Machine, Bucket]) -> None:
    machine, bucket = little
    without_openssl(machine, "")
    machine.sh("for each in /usr/bin/python3*; do mv $each /usr/bin/away-${each##*/}; done")
    done = machine.action("head", "start", bucket.offer())
    assert done.code == 1
    assert "nothing here can verify" in done.err
    machine.untouched()


def test_a_whole_bundle_by_python(machine: Machine, bucket: Bucket) -> None:
    """25 MB, as they are on RHEL 8."""
    without_openssl(machine, OLD_OPENSSL)
    done = machine.action("login", "start", bucket.offer())
    assert done.code == 0, done
    assert "is verified" in done.out
    shutil.copy(bucket.folder / "site.tar.gz.sig", bucket.folder / f"{bucket.name}.sig")
    assert machine.action("login", "start", bucket.offer()).code == 1
