"""The facts that checks judge: small, frozen, and without any way to get more of them.

Times are Unix seconds unless a name says otherwise, sizes bytes. An empty text means that there is nothing to say.
"""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """The two YAML files. ``mistakes``: each with its line; ``proof``: ``node.proof``."""

    mistakes: tuple[str, ...]
    proof: str


class Rendered(NamedTuple):
    """What the hooks read. ``problem``: why it is not what the YAML files say."""

    problem: str
    advice: str


class Daemon(NamedTuple):
    """One daemon. ``unit``: systemd's ActiveState, empty where there is no systemd; ``running``: its processes."""

    name: str
    unit: str
    running: int

    @property
    def runs(self) -> bool:
        """As systemd says, where there is one."""
        return self.unit == "active" if self.unit else self.running > 0


class Clock(NamedTuple):
    """``synchronised``: whether the kernel says that something keeps it in step; None: that cannot be told."""

    now: float
    synchronised: bool | None


class Space(NamedTuple):
    """What is free for root below ``path``. ``total`` 0: the file system does not say."""

    path: str
    free: int
    total: int
    files_free: int
    files: int


class Fips(NamedTuple):
    """The kernel's FIPS mode; None: it has no such switch."""

    enabled: bool | None
    wanted: bool


class Leak(NamedTuple):
    """A way by which a job's data reach a disk of this machine in clear; ``rule`` as in docs/rules.md."""

    rule: str
    seen: str
    fix: str


class Metadata(NamedTuple):
    """The instance metadata service, tried as an ordinary user. ``reached`` None: that cannot be told."""

    reached: tuple[str, ...] | None
    closed: bool | None


class Attempt(NamedTuple):
    """A connection that was tried: ``host:port``. ``resolved``: addresses of a name; ``result``: see connect.py."""

    target: str
    resolved: tuple[str, ...]
    result: str


class Certificate(NamedTuple):
    """A certificate in a file or at a server; with ``problem`` nothing else is known of it.

    ``name``: its common name; ``wanted``: what that has to be, empty where it does not matter.
    """

    what: str
    where: str
    starts: float
    ends: float
    name: str = ""
    problem: str = ""
    wanted: str = ""


class VaultServer(NamedTuple):
    """What the server says without a login. ``status``: of sys/health; 0: no answer, for ``problem``.

    ``skew``: seconds between its clock and ours, less what the exchange may have taken; None: it does not say.
    """

    address: str
    status: int
    version: str
    skew: float | None
    certificate: Certificate
    problem: str = ""
    advice: str = ""


class VaultOwn(NamedTuple):
    """What this machine's own identity gets. ``problem``: why it cannot log in."""

    problem: str
    advice: str
    policies: tuple[VaultPolicy, ...]


class VaultPolicy(NamedTuple):
    """A policy as it is in Vault. ``shipped``: the pattern that it has to match, line by line."""

    name: str
    shipped: tuple[str, ...]
    text: str
    problem: str = ""


class VaultStep(NamedTuple):
    """A line of ``secure-slurm vault init --check`` with an admin's token."""

    what: str
    state: str
    detail: str


class LdapServer(NamedTuple):
    """One address of ldap.uris."""

    uri: str
    certificate: Certificate


class LdapGroups(NamedTuple):
    """What a login found. ``uri``: where; ``problem``: why there was none; ``missing``: groups that are not there."""

    uri: str
    asked: int
    missing: tuple[str, ...]
    problem: str = ""
    advice: str = ""


class Members(NamedTuple):
    """The members file. ``age`` in seconds; ``missing``: groups that ldapd did not find; ``empty``: without members."""

    age: float
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    problem: str = ""
    advice: str = ""


class HookFile(NamedTuple):
    """A program that Slurm runs. ``ours``: it is the hook of this installation; ``runnable``: root can run it."""

    path: str
    ours: bool
    runnable: bool


class Slurm(NamedTuple):
    """What slurmctld says of itself: each setting, and the programs that its hooks lead to, in the order of running."""

    settings: dict[str, str]
    hooks: dict[str, tuple[HookFile, ...]]

    def words(self, name: str) -> list[str]:
        """A setting that is a list, in lower case; empty when it is not set."""
        value = self.settings.get(name, "").lower()
        return [] if value in ("", "none", "(null)") else [word.strip() for word in value.split(",")]


class Wanted(NamedTuple):
    """What the site file asks of Slurm. Deadlines in seconds."""

    cluster: str
    prolog_deadline: float
    start_deadline: float


class Filter(NamedTuple):
    """job_submit.lua beside slurm.conf. ``same``: it is this installation's; ``lua``: the version that Slurm links."""

    path: str
    there: bool
    same: bool
    lua: str
    socket: str
    problem: str = ""


class Head(NamedTuple):
    """What the lifecycle daemon says. ``bad``: what is wrong, one a line; the jobs of ``pending`` wait for Vault."""

    bad: tuple[str, ...]
    pending: tuple[str, ...]
    pending_count: int
    kept: tuple[str, ...]
    kept_count: int
    damaged: int


class Decision(NamedTuple):
    """What the decision daemon says."""

    members: str
    audit: str


class Revocations(NamedTuple):
    """Orders that are in force, and those that not every node and Vault have confirmed."""

    in_force: int
    waiting: tuple[str, ...]


class SecretFile(NamedTuple):
    """A file that holds a secret. ``problem``: why it is none, or not one."""

    what: str
    path: str
    problem: str


class NodeDaemon(NamedTuple):
    """What the node daemon says of its place."""

    region: str
    jurisdiction: str
    proof: str
    problem: str = ""


class Enrolled(NamedTuple):
    """What the head node has given this node. ``asked``: nodes enrol here; ``instance`` empty: it has nothing good."""

    asked: bool
    instance: str = ""
    begins: float = 0.0
    ends: float = 0.0


class NodeJobs(NamedTuple):
    """What there is of scratch here: ``orphans`` belong to no job; ``problems``: what could not be looked at."""

    jobs: int
    orphans: tuple[str, ...]
    problems: tuple[str, ...]


class Crypt(NamedTuple):
    """``target``: dm-crypt can be used; ``missing``: programs; ``aes``: the processor has instructions for it."""

    target: bool
    missing: tuple[str, ...]
    aes: bool | None


class Speed(NamedTuple):
    """cryptsetup benchmark, aes-xts with 512 bits, MiB/s, the slower direction."""

    rate: float


class ScratchPlace(NamedTuple):
    """Where scratch is made. ``needed``: what the largest default of a class asks for."""

    where: str
    free: int
    needed: int
    problem: str = ""
    advice: str = ""


class FileSystems(NamedTuple):
    """Writable network file systems that are not listed for this node's jurisdiction; ``users``: a user mounted it."""

    place: str
    unlisted: tuple[str, ...]
    users: tuple[str, ...]


class SlurmNode(NamedTuple):
    """This node as slurmctld has it. ``demanding``: its partitions that demand a tag; None: that is not known."""

    state: str
    reason: str
    demanding: tuple[str, ...] | None = None


class Commands(NamedTuple):
    """Commands that a user types. ``missing``: not in any folder where they are looked for."""

    missing: tuple[str, ...]
    slurm: str
