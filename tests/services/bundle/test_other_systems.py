"""Systems that are no Debian, as far as a Debian can be dressed as one: bash as sh, another os-release, a python3 that
is too old and a newer one beside it, no apt. What differs below that (their glibc, OpenSSL, libldap) is not tried here.
"""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import pytest

from tests.services.bundle.archives import read
from tests.services.bundle.conftest import Bucket, Machine

RHEL = (
    'NAME="AlmaLinux"\nVERSION="9.4 (Seafoam Ocelot)"\nID="almalinux"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n'
)
# what answers to python3 there is 3.9
OLD_PYTHON = '#!/bin/sh\ncase $* in *version_info*) ;; *) echo "asked for more than its version" >&2 ;; esac\nexit 1\n'
DEBIANS = "ldap/debian-12/x86_64/python_ldap-3.4.8-cp311-cp311-linux_x86_64.whl"
only_bookworm = pytest.mark.parametrize("system", ["bookworm"], indirect=True)


def dress(machine: Machine) -> None:
    machine.sh("ln -sf bash /bin/sh; rm /etc/os-release; rm /usr/bin/python3")
    machine.put("/etc/os-release", RHEL)
    machine.put("/usr/bin/python3", OLD_PYTHON)
    machine.sh("chmod 755 /usr/bin/python3; apt-get --version >/dev/null; rm /usr/bin/apt* /usr/bin/dpkg*")


@only_bookworm
def test_a_head_node_whose_directory_cannot_be_read(machine: Machine, bucket: Bucket) -> None:
    """There is no python-ldap for this system in the bundle: that is said, and nothing half done is in force."""
    dress(machine)
    done = machine.action("head", "start", bucket.offer())
    assert done.code == 1
    assert "this is rhel-9" in done.err
    assert "bundle/compile.sh" in done.err
    assert not machine.there("/opt/secure-slurm/venv")
    assert not machine.there("/opt/slurm/etc/job_submit.lua")


@only_bookworm
def test_what_was_compiled_on_such_a_system_is_used(machine: Machine, bucket: Bucket, made: Path) -> None:
    dress(machine)
    name = bucket.newer("0.2.0", **{"ldap/rhel-9/x86_64/" + DEBIANS.rpartition("/")[2]: read(made)[DEBIANS].data})
    done = machine.action("head", "start", bucket.offer(name))
    assert done.code == 0, done
    assert (
        machine.sh("/opt/secure-slurm/venv/bin/python3 -I -c 'import sys, ldap; print(sys.version_info[1])'") == "11\n"
    )
    assert machine.sh("head -n 1 /opt/secure-slurm/bin/secure-slurm") == "#!/opt/secure-slurm/venv/bin/python3 -I\n"


@only_bookworm
def test_no_python_that_is_recent_enough(machine: Machine, bucket: Bucket) -> None:
    dress(machine)
    machine.sh("rm /usr/bin/python3.11")
    done = machine.action("login", "configured", bucket.offer())
    assert done.code == 1
    assert "there is no Python 3.11 or later" in done.err
    assert not machine.there("/opt/secure-slurm/bin")


MACHINES = {"x86_64": 62, "aarch64": 183}


def test_luasocket_for_both_architectures(made: Path) -> None:
    """ELF's e_machine, and the place in the file that says it (elf(5)). On ARM itself it was not loaded."""
    seen = set()
    with tarfile.open(made) as tar:
        for member in tar:
            parts = member.name.split("/")
            if member.name.endswith(".so"):
                opened = tar.extractfile(member)
                assert opened
                head = opened.read(20)
                assert head[:4] == b"\x7fELF"
                assert struct.unpack("<H", head[18:20])[0] == MACHINES[parts[3]]
                seen.add((parts[2], parts[3], parts[5]))
    assert len(seen) == 3 * 2 * 2
