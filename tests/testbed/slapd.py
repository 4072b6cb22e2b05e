"""A real slapd over LDAPS for tests, with the memberOf overlay; users are below ``ou=people``, groups ``ou=groups``.

By hand: ``python -m tests.testbed.slapd DIRECTORY [ADDRESS:PORT]`` runs one until Ctrl-C.
"""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

from tests.testbed.pki import CA, Pair

BINARY = "/usr/sbin/slapd"
SUFFIX = "dc=example,dc=org"
START_DEADLINE = 180.0
TOOL_DEADLINE = 300.0
POLL = 0.05

_CONF = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
pidfile {run}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
{modules}
TLSCACertificateFile {run}/ca.crt
TLSCertificateFile {run}/server.crt
TLSCertificateKeyFile {run}/server.key
{settings}
database mdb
maxsize 1073741824
suffix {suffix}
rootdn cn=admin,{suffix}
rootpw {password}
directory {run}/db
index objectClass,uid,member eq
{limits}
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact=cn=reader,{suffix} read by * none
overlay memberof
{overlays}
"""


class SlapdError(Exception):
    """The server or one of its tools did not do what the test bed needs."""


def ldif(dn: str, attributes: Mapping[str, Sequence[str | bytes]]) -> str:
    """One LDIF record to add. Everything is written in base64, so that no name can break the format (RFC 2849)."""
    lines = [f"dn:: {_base64(dn)}"]
    lines += [f"{name}:: {_base64(value)}" for name, values in attributes.items() for value in values]
    return "\n".join(lines) + "\n\n"


def user(uid: str, *, parent: str = f"ou=people,{SUFFIX}", **more: Sequence[str | bytes]) -> str:
    """A person that may log in as ``uid``."""
    classes = ["inetOrgPerson", "posixAccount", "shadowAccount"]
    account = {"uidNumber": ["2000"], "gidNumber": ["2000"], "homeDirectory": [f"/home/{uid}"]}
    return ldif(
        f"uid={uid},{parent}", {"objectClass": classes, "cn": [uid], "sn": [uid], "uid": [uid], **account, **more}
    )


def group(cn: str, members: Sequence[str], *, kind: str = "groupOfNames", attribute: str = "member") -> str:
    """A group with these members (names of entries)."""
    return ldif(f"cn={cn},ou=groups,{SUFFIX}", {"objectClass": [kind], "cn": [cn], attribute: members})


def person(uid: str) -> str:
    """The entry's name of :func:`user`."""
    return f"uid={uid},ou=people,{SUFFIX}"


def group_dn(cn: str) -> str:
    """The entry's name of :func:`group`."""
    return f"cn={cn},ou=groups,{SUFFIX}"


class Slapd:
    """One server process. ``stop`` keeps the data for a later ``start``; leaving the ``with`` block removes it.

    ``directory`` gets ``slapd.log``. ``pair`` replaces the certificate that ``ca`` would sign for ``names`` (and the
    address); ``settings`` are further global lines of slapd.conf, ``overlays`` those of its database (with their
    ``modules``); ``size_limit`` is what the reader may get. Passwords are new in every server.
    """

    def __init__(
        self,
        directory: Path,
        ca: CA,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        names: Sequence[str] = (),
        pair: Pair | None = None,
        settings: str = "",
        size_limit: str = "unlimited",
        modules: Sequence[str] = (),
        overlays: str = "",
    ) -> None:
        self.directory, self.ca, self.address = directory, ca, address
        self.port = port or _free_port(address)
        self.uri = f"ldaps://{names[0] if names else address}:{self.port}"
        self.reader_dn = f"cn=reader,{SUFFIX}"
        self.reader_password = secrets.token_hex(16)
        self.log = directory / "slapd.log"
        self._names, self._pair, self._settings, self._size_limit = names, pair, settings, size_limit
        self._modules, self._overlays = modules, overlays
        self._admin_password = secrets.token_hex(16)
        self._run: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start()
            self.add(_base() + ldif(self.reader_dn, _reader(self.reader_password)))
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
    def process(self) -> subprocess.Popen[bytes]:
        """The running server."""
        if self._process is None:
            raise SlapdError("slapd does not run")
        return self._process

    @property
    def runs(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def _prepare(self) -> None:
        """A directory that the server's user can reach: pytest's own are closed to it, and too long for a socket."""
        self.directory.mkdir(parents=True, exist_ok=True)
        run = self._run = Path(tempfile.mkdtemp(prefix="slapd-", dir="/tmp"))
        (run / "db").mkdir()
        pair = self._pair or self.ca.server(f"slapd-{self.port}", [*self._names, self.address], self.directory)
        shutil.copyfile(self.ca.certificate, run / "ca.crt")
        shutil.copyfile(pair.certificate, run / "server.crt")
        shutil.copyfile(pair.private_key, run / "server.key")
        (run / "slapd.conf").write_text(
            _CONF.format(
                run=run,
                suffix=SUFFIX,
                password=self._admin_password,
                settings=self._settings,
                modules="".join(f"moduleload {name}\n" for name in self._modules),
                overlays=self._overlays,
                limits=f"limits dn.exact=cn=reader,{SUFFIX} size={self._size_limit} size.prtotal={self._size_limit}",
            )
        )
        (run / "password").write_text(self._admin_password)
        for path in (run / "slapd.conf", run / "server.key", run / "password"):
            path.chmod(0o600)
        if os.geteuid() == 0:
            account = pwd.getpwnam("openldap")
            for path in (run, *run.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)

    def start(self) -> None:
        """Start on the data that is there and wait until it answers."""
        as_user = ["-u", "openldap", "-g", "openldap"] if os.geteuid() == 0 else []
        listeners = f"ldaps://{self.address}:{self.port}/ {self._local()}"
        argv = [BINARY, "-d", "0", *as_user, "-f", f"{self._run}/slapd.conf", "-h", listeners]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_DEADLINE
        last = b""
        while time.monotonic() < deadline and self._process.poll() is None:
            answer = self._tool("/usr/bin/ldapwhoami", b"")
            if answer.returncode == 0 and _listens(self.address, self.port):
                return
            last = answer.stderr
            time.sleep(POLL)
        self.stop()
        tail = self.log.read_text(errors="replace")[-2000:]
        raise SlapdError(f"slapd does not answer: {last.decode(errors='replace')}\n{tail}")

    def stop(self) -> None:
        """End the process, keep its data; may be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def load(self, records: str) -> None:
        """Put many LDIF records straight into the database of a stopped server; memberOf stays empty."""
        argv = ["/usr/sbin/slapadd", "-q", "-f", f"{self._run}/slapd.conf"]
        account = {"user": "openldap", "group": "openldap", "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(
            argv, input=records.encode(), capture_output=True, timeout=TOOL_DEADLINE, check=False, **account
        )
        if done.returncode:
            raise SlapdError(f"slapadd: {done.stderr.decode(errors='replace')[-2000:]}")

    def add(self, records: str) -> None:
        """Add LDIF records (through ldapadd: slapadd would leave memberOf empty)."""
        self._change("/usr/bin/ldapadd", records)

    def modify(self, changes: str) -> None:
        """Apply LDIF change records."""
        self._change("/usr/bin/ldapmodify", changes)

    def delete(self, dn: str) -> None:
        """Delete one entry."""
        self.modify(f"dn:: {_base64(dn)}\nchangetype: delete\n")

    def rename(self, dn: str, rdn: str, parent: str = "") -> None:
        """Give an entry another name, and another parent."""
        above = f"newsuperior:: {_base64(parent)}\n" if parent else ""
        self.modify(f"dn:: {_base64(dn)}\nchangetype: modrdn\nnewrdn:: {_base64(rdn)}\ndeleteoldrdn: 1\n{above}")

    def replace(self, dn: str, attribute: str, value: str) -> None:
        """Set one attribute of one entry."""
        self.modify(f"dn:: {_base64(dn)}\nchangetype: modify\nreplace: {attribute}\n{attribute}:: {_base64(value)}\n")

    def set_members(self, cn: str, members: Sequence[str]) -> None:
        """Replace the members of a groupOfNames."""
        values = "".join(f"member:: {_base64(member)}\n" for member in members)
        self.modify(f"dn: {group_dn(cn)}\nchangetype: modify\nreplace: member\n{values}")

    def _change(self, tool: str, text: str) -> None:
        answer = self._tool(tool, text.encode())
        if answer.returncode:
            raise SlapdError(f"{tool}: {answer.stderr.decode(errors='replace')}")

    def _tool(self, tool: str, text: bytes) -> subprocess.CompletedProcess[bytes]:
        argv = [tool, "-x", "-H", self._local(), "-D", f"cn=admin,{SUFFIX}", "-y", f"{self._run}/password"]
        return subprocess.run(
            argv, input=text, capture_output=True, timeout=TOOL_DEADLINE, check=False, env={"LDAPNOINIT": "1"}
        )

    def _local(self) -> str:
        return "ldapi://" + quote(f"{self._run}/ldapi", safe="")


def _base() -> str:
    return ldif(SUFFIX, {"objectClass": ["dcObject", "organization"], "o": ["example"], "dc": ["example"]}) + "".join(
        ldif(f"ou={name},{SUFFIX}", {"objectClass": ["organizationalUnit"], "ou": [name]})
        for name in ("people", "groups")
    )


def _reader(password: str) -> dict[str, list[str]]:
    return {
        "objectClass": ["organizationalRole", "simpleSecurityObject"],
        "cn": ["reader"],
        "userPassword": [password],
    }


def _base64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _main(arguments: list[str]) -> int:
    directory = Path(arguments[0]).absolute()
    address, _, port = (arguments[1] if len(arguments) > 1 else "127.0.0.1:0").rpartition(":")
    with Slapd(directory, CA(directory / "ca"), address, int(port), names=()) as server:
        password = directory / "reader-password"
        password.touch(mode=0o600)
        password.write_text(server.reader_password)
        print(f"{server.uri} CA {server.ca.certificate} as {server.reader_dn}, password in {password}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.testbed.slapd DIRECTORY [ADDRESS:PORT]")
    sys.exit(_main(sys.argv[1:]))
