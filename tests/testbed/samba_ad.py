"""A real Active Directory domain controller for tests: Samba, LDAPS only in use, everything in one directory.

Needs root (a domain controller sets owners and NT ACLs) and Debian's samba-ad-dc, samba-ad-provision,
samba-dsdb-modules and winbind. It takes ports 389, 636, 3268 and 3269 of its address: run it in a network namespace
of its own. Provisioning takes about 13 s.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.testbed.pki import CA

BINARY = "/usr/sbin/samba"
TOOL = "/usr/bin/samba-tool"
REALM = "AD.TEST"
BASE = "DC=ad,DC=test"
USERS = f"CN=Users,{BASE}"
PROVISION_DEADLINE = 180.0
START_DEADLINE = 90.0
TOOL_DEADLINE = 60.0
POLL = 0.1
_NORMAL_WITHOUT_PASSWORD = 0x200 | 0x20
# Samba's own interface to its database, in its own Python
_LOAD = """
import json, sys
from samba.auth import system_session
from samba.param import LoadParm
from samba.samdb import SamDB
settings = LoadParm()
settings.load(sys.argv[1])
database = SamDB(session_info=system_session(), lp=settings, url=sys.argv[2])
database.transaction_start()
for dn, attributes in json.load(sys.stdin):
    database.add({"dn": dn, **attributes})
database.transaction_commit()
"""
_EPOCH = 11_644_473_600  # seconds from 1601 to 1970


class SambaError(Exception):
    """The domain controller or its tool did not do what the test bed needs."""


def ticks(unix: float) -> int:
    """A time as AD writes it: 100 ns steps since 1601."""
    return int((unix + _EPOCH) * 10_000_000)


class SambaAD:
    """One domain controller. ``stop`` keeps the data for a later ``start``; leaving the ``with`` block removes it.

    ``directory`` gets ``samba.log``. ``ca`` signs the server's certificate for ``address``. Passwords are new each
    time, and no command line has one.
    """

    def __init__(self, directory: Path, ca: CA, address: str = "127.0.0.1") -> None:
        self.directory, self.ca, self.address = directory, ca, address
        self.uri = f"ldaps://{address}"
        self.reader_dn = f"CN=reader,{USERS}"
        self.reader_password = _password()
        self.log = directory / "samba.log"
        self._admin_password = ""
        self._run: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._provision()
            self.start()
            self.add_user("reader")
            self._set_password(self.reader_dn, self.reader_password)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        if self._run is not None:
            shutil.rmtree(self._run, ignore_errors=True)
            self._run = None

    @property
    def _data(self) -> Path:
        if self._run is None:
            raise SambaError("nothing was provisioned")
        return self._run

    def _provision(self) -> None:
        if os.geteuid() != 0:
            raise SambaError("a domain controller needs root")
        self.directory.mkdir(parents=True, exist_ok=True)
        # short: the sockets below it must fit in a socket address
        run = self._run = Path(tempfile.mkdtemp(prefix="samba-", dir="/tmp"))
        pair = self.ca.server("dc1", ["dc1.ad.test", self.address], self.directory)
        options = {
            "interfaces": self.address,
            "bind interfaces only": "yes",
            "server services": "ldap",
            "tls certfile": pair.certificate,
            "tls keyfile": pair.private_key,
            "tls cafile": self.ca.certificate,
            "pid directory": run,
            "lock directory": run,
            "state directory": run / "state",
            "cache directory": run / "cache",
            "ncalrpc dir": run / "ncalrpc",
            "log file": "/dev/stdout",
        }
        argv = [TOOL, "domain", "provision", "--server-role=dc", "--use-rfc2307", "--dns-backend=NONE"]
        argv += [f"--realm={REALM}", "--domain=AD", "--host-name=dc1", f"--host-ip={self.address}"]
        argv += [f"--targetdir={run}", *(f"--option={name}={value}" for name, value in options.items())]
        # without --adminpass it makes one up and tells it at the end
        told = re.search(r"^.*Admin password: +(\S+)$", self._run_tool(argv, PROVISION_DEADLINE), re.MULTILINE)
        if told is None:
            raise SambaError("samba-tool did not tell the administrator's password")
        self._admin_password = told.group(1)

    def start(self) -> None:
        """Start on the data that is there and wait until LDAPS answers a login."""
        argv = [BINARY, "--interactive", "--no-process-group", "-s", f"{self._data}/etc/smb.conf"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_DEADLINE
        last = b""
        while time.monotonic() < deadline and self._process.poll() is None:
            answer = self._ldap("/usr/bin/ldapwhoami", "")
            if answer.returncode == 0 and _listens(self.address):
                return
            last = answer.stderr
            time.sleep(POLL)
        self.stop()
        tail = self.log.read_text(errors="replace")[-3000:]
        raise SambaError(f"samba does not answer: {last.decode(errors='replace')}\n{tail}")

    def stop(self) -> None:
        """End the process and its workers, keep the data; may be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def add_user(self, name: str) -> str:
        """An enabled account with a password that nobody knows; returns the name of its entry."""
        self.tool("user", "create", name, "--random-password")
        return f"CN={name},{USERS}"

    def _set_password(self, dn: str, password: str) -> None:
        value = base64.b64encode(f'"{password}"'.encode("utf-16-le")).decode()
        self.modify(f"dn: {dn}\nchangetype: modify\nreplace: unicodePwd\nunicodePwd:: {value}\n")

    def add_bare_users(self, names: Sequence[str]) -> None:
        """Many enabled accounts without a password, in one go over LDAPS."""
        self.modify(
            "".join(
                f"dn: CN={name},{USERS}\nchangetype: add\nobjectClass: user\nsAMAccountName: {name}\n"
                f"userAccountControl: {_NORMAL_WITHOUT_PASSWORD}\n\n"
                for name in names
            )
        )

    def load(self, entries: Sequence[tuple[str, Mapping[str, str | Sequence[str]]]]) -> None:
        """Many entries straight into the database, in one go: over LDAPS each would be a transaction of its own."""
        argv = ["/usr/bin/python3", "-c", _LOAD, f"{self._data}/etc/smb.conf", f"{self._data}/private/sam.ldb"]
        done = subprocess.run(
            argv,
            input=json.dumps(entries).encode(),
            capture_output=True,
            timeout=PROVISION_DEADLINE,
            check=False,
            env={},
        )
        if done.returncode:
            raise SambaError(f"loading entries: {done.stderr.decode(errors='replace')[-2000:]}")

    def delete(self, dn: str) -> None:
        """Delete one entry."""
        self.modify(f"dn:: {_base64(dn)}\nchangetype: delete\n")

    def rename(self, dn: str, rdn: str, parent: str = "") -> None:
        """Give an entry another name, and another parent."""
        above = f"newsuperior:: {_base64(parent)}\n" if parent else ""
        self.modify(f"dn:: {_base64(dn)}\nchangetype: modrdn\nnewrdn:: {_base64(rdn)}\ndeleteoldrdn: 1\n{above}")

    def add_entry(self, dn: str, attributes: Mapping[str, str]) -> None:
        """Any entry, over LDAPS; in base64, so that no name can break the format."""
        values = "".join(f"{name}:: {_base64(value)}\n" for name, value in attributes.items())
        self.modify(f"dn:: {_base64(dn)}\nchangetype: add\n{values}")

    def disable(self, name: str) -> None:
        """Set ACCOUNTDISABLE."""
        self.tool("user", "disable", name)

    def add_group(self, name: str, *, security: bool = True) -> str:
        """A global group; returns the name of its entry."""
        self.tool("group", "add", name, "--group-type=" + ("Security" if security else "Distribution"))
        return f"CN={name},{USERS}"

    def add_members(self, group: str, names: Sequence[str]) -> None:
        """Put users or groups into a group."""
        self.tool("group", "addmembers", group, ",".join(names))

    def remove_members(self, group: str, names: Sequence[str]) -> None:
        """Take users or groups out of a group."""
        self.tool("group", "removemembers", group, ",".join(names))

    def tool(self, *arguments: str) -> str:
        """Run samba-tool on the domain's database; returns what it printed."""
        return self._run_tool([TOOL, *arguments, f"--configfile={self._data}/etc/smb.conf"], TOOL_DEADLINE)

    def modify(self, changes: str) -> None:
        """Apply LDIF change records over LDAPS."""
        answer = self._ldap("/usr/bin/ldapmodify", changes)
        if answer.returncode:
            raise SambaError(f"ldapmodify: {answer.stderr.decode(errors='replace')}")

    def replace(self, dn: str, attribute: str, value: str) -> None:
        """Set one attribute of one entry."""
        self.modify(f"dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n")

    def _run_tool(self, argv: Sequence[str], deadline: float) -> str:
        # Both streams in one: samba-tool tells results on either.
        answer = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline,
            check=False,
        )
        if answer.returncode:
            text = answer.stdout.decode(errors="replace")[-3000:]
            raise SambaError(f"{' '.join(argv[:3])}: {text}")
        return answer.stdout.decode(errors="replace")

    def _ldap(self, tool: str, text: str) -> subprocess.CompletedProcess[bytes]:
        password = self._data / "admin-password"
        password.touch(mode=0o600)
        password.write_text(self._admin_password)
        argv = [tool, "-x", "-H", self.uri, "-D", f"administrator@{REALM.lower()}", "-y", str(password)]
        environment = {"LDAPTLS_CACERT": str(self.ca.certificate), "LDAPTLS_REQCERT": "demand"}
        return subprocess.run(
            argv, input=text.encode(), capture_output=True, timeout=TOOL_DEADLINE, check=False, env=environment
        )


def _base64(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _password() -> str:
    """Random, and of the three kinds of characters that the domain's password rules want."""
    return f"Aa1-{secrets.token_hex(12)}"


def _listens(address: str) -> bool:
    try:
        socket.create_connection((address, 636), timeout=5).close()
    except OSError:
        return False
    return True
