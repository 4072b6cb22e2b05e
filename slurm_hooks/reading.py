"""One whole reading of the directory, in a child process that is killed when it takes too long.

The child is what makes the deadline hold: libldap can hang for ever in a TLS handshake, and a thread that does cannot
be ended. The bind password and the C library live in the child only.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from conf.errors import BackendUnavailable, ConfigError, InternalError, SecureSlurmError
from conf.safefile import check_file_safety
from slurm_hooks.accounts import ACTIVE_DIRECTORY, short
from slurm_hooks.directory import READING_TIMEOUT, CredentialsRefused, Directory, read_password
from slurm_hooks.membership import Group, Members, read_members

CONNECT_TIMEOUT = 12  # seconds for name resolution, connecting, TLS and the login together, at one server
_TICK = 0.25  # seconds between looks at whether we are to stop
_MAX_ANSWER = 256 * 1024 * 1024
# Address space for a server that answers without end. A reading of 500,000 people takes 410 MB (measured).
MAX_MEMORY = 2 * 1024 * 1024 * 1024
_ERRORS: dict[str, type[SecureSlurmError]] = {
    each.__name__: each for each in (BackendUnavailable, ConfigError, CredentialsRefused, InternalError)
}


class Request(NamedTuple):
    """What to read: ``uris`` in the order they are tried, ``groups`` as the policy writes their names."""

    flavour: str
    uris: tuple[str, ...]
    ca_file: str
    bind_dn: str
    bind_password_file: str
    base: str
    user_attribute: str
    groups: tuple[str, ...]


class Reading(NamedTuple):
    """Which server answered, what, and what the servers before it failed with."""

    uri: str
    members: Members
    failures: tuple[str, ...] = ()


def read_directory(request: Request, now: float, *, stopping: Callable[[], bool] = lambda: False) -> Reading:
    """The members of every group, from the first server that gives them all.

    ``now`` (Unix seconds) is what an account's expiry is compared with. Raises :class:`ConfigError` at once for what no
    other server would mend (a wrong password there is wrong everywhere, and counts towards a lock), else
    :class:`BackendUnavailable` with what each server answered, also when ``stopping`` turned true. A server gets
    :data:`CONNECT_TIMEOUT` to let us in and ``READING_TIMEOUT`` for everything. It forks: not for a process with
    threads.
    """
    failures: list[str] = []
    for uri in request.uris:
        try:
            return Reading(uri, _in_child(uri, request, now, stopping), tuple(failures))
        except BackendUnavailable as error:
            failures.append(str(error))
            if stopping():
                break
    raise BackendUnavailable(
        "; ".join(failures) or "no LDAP server is configured",
        advice="check the network, the servers and their certificates (ldap.ca_file)",
    )


def _in_child(uri: str, request: Request, now: float, stopping: Callable[[], bool]) -> Members:
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        _child(uri, request, now, sending)
    os.close(sending)
    ended: int | None = None
    try:
        answer = _receive(receiving, uri, stopping)
        ended = os.waitpid(child, 0)[1]
    finally:
        os.close(receiving)
        if ended is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if ended and os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGALRM:
        raise BackendUnavailable(f"{uri} did not let us in within {CONNECT_TIMEOUT} s")
    if ended or not answer:
        raise BackendUnavailable(f"the reading of {uri} broke off (wait status {ended})")
    return _unpack(answer)


def _receive(fd: int, uri: str, stopping: Callable[[], bool]) -> bytes:
    """Everything the child writes until it ends. Raises when it is late, or when we are to stop."""
    deadline = time.monotonic() + CONNECT_TIMEOUT + READING_TIMEOUT
    data = bytearray()
    while True:
        if stopping():
            raise BackendUnavailable(f"the reading of {uri} was told to stop")
        if time.monotonic() >= deadline or len(data) > _MAX_ANSWER:
            raise BackendUnavailable(f"the reading of {uri} took too long or was too large")
        if select.select([fd], [], [], _TICK)[0]:
            chunk = os.read(fd, 1 << 20)
            if not chunk:
                return bytes(data)
            data += chunk


def _child(uri: str, request: Request, now: float, sending: int) -> NoReturn:
    status = 1
    try:
        # Whoever started us may hold signals back; in here each of them ends the process, which is what is wanted.
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MAX_MEMORY if most == resource.RLIM_INFINITY else min(MAX_MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        answer = _pack(_read(uri, request, now))
        with os.fdopen(sending, "wb") as pipe:
            pipe.write(answer)
        status = 0
    finally:
        # Not sys.exit: exit handlers and buffers of the parent's are not ours to run.
        os._exit(status)


def _read(uri: str, request: Request, now: float) -> Members | SecureSlurmError:
    try:
        check_file_safety(request.ca_file)
        with read_password(request.bind_password_file) as password:
            signal.alarm(CONNECT_TIMEOUT)
            directory = Directory.open(uri, ca_file=request.ca_file, bind_dn=request.bind_dn, password=password)
            signal.alarm(0)
        with directory:
            members = read_members(
                directory,
                request.groups,
                flavour=request.flavour,
                base=request.base,
                user_attribute=request.user_attribute,
                now=now,
            )
        notes = [*members.notes, *directory.remarks.all()]
        # Active Directory points to its other naming contexts in every answer: that says nothing about users or groups
        if directory.elsewhere and request.flavour != ACTIVE_DIRECTORY:
            notes.append(f"{uri} says that other servers have parts of {short(request.base)}; who is there is not read")
        return members._replace(notes=tuple(notes))
    except SecureSlurmError as error:
        return error
    except Exception as error:  # noqa: BLE001 - its text could hold anything, so only its kind is passed on
        return InternalError(f"the reading of {uri} failed by a defect: {type(error).__name__}")


def _pack(result: Members | SecureSlurmError) -> bytes:
    if isinstance(result, SecureSlurmError):
        document: object = {"error": type(result).__name__, "message": str(result), "advice": result.advice}
    else:
        groups = {dn: (group.name, sorted(group.members), group.missing) for dn, group in result.groups.items()}
        document = {"groups": groups, "notes": result.notes}
    return json.dumps(document).encode()


def _unpack(answer: bytes) -> Members:
    document = json.loads(answer)
    if "error" in document:
        kind = _ERRORS.get(document["error"], InternalError)
        raise kind(document["message"], advice=document["advice"])
    groups = {dn: Group(name, frozenset(names), missing) for dn, (name, names, missing) in document["groups"].items()}
    return Members(groups, tuple(document["notes"]))
