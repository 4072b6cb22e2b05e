"""``secure-slurm node imds``: whether users of a node reach the instance metadata service, and rules that stop them.

The service gives the credentials of the instance's role to whoever asks from the machine. ParallelCluster closes it on
head and login nodes only, so on a compute node every job is the instance. Root's, and idempotent; nftables alone.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from typing import Any, NamedTuple

from admin.output import printable, say, say_json
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError, Refused
from conf.hookconf import HOOKS_JSON, read_hook_config
from keys.process import ProcessError, ProgramMissing, program, run

ADDRESSES = {"ip": "169.254.169.254", "ip6": "fd00:ec2::254"}
"""EC2's, and of other clouds too (EC2 user guide, "Instance metadata service")."""
TABLE = "inet secure_slurm_imds"
DAEMON = "secure-node"
NOBODY = "65534"
TIMEOUT = 20.0
"""Seconds for nft; the probe has :data:`PATIENCE` for each address."""
PATIENCE = 2.0

# what a connection by a user ends with: nothing but a connection is bad news
_PROBE = """
import errno, socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as probe:
    probe.settimeout(float(sys.argv[2]))
    try:
        probe.connect((sys.argv[1], 80))
        print("open")
    except TimeoutError:
        print("silent")
    except OSError as error:
        print(errno.errorcode.get(error.errno, "error"))
"""


class State(NamedTuple):
    """``rules``: whether ours are loaded. ``reached``: the addresses that a user reaches. None: that cannot be told."""

    rules: bool | None
    reached: tuple[str, ...] | None

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; empty when nothing is."""
        if self.reached is None:
            return "whether users reach the metadata service is not known"
        if self.reached:
            where = ", ".join(self.reached)
            return f"users of this node reach the metadata service ({where}): secure-slurm node imds --close"
        return ""

    def words(self) -> str:
        """For people."""
        if self.reached is None:
            return "not known"
        if self.reached:
            return f"open to users: {', '.join(self.reached)}"
        return "closed to users" if self.rules else "users do not reach any (no rules of ours are loaded)"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``node imds``."""
    parser = commands.add_parser(
        "imds",
        help="show whether users reach the instance metadata service, and close it",
        description="Show whether a user of this machine reaches the instance metadata service, by trying it as "
        "nobody. Exit 0: no; 1: yes, or not known.",
        allow_abbrev=False,
    )
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--close",
        action="store_true",
        help="load rules that let root, the node daemon and node.metadata_users alone reach it",
    )
    change.add_argument("--open", action="store_true", help="remove these rules")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_imds)
    return parser


def run_imds(args: argparse.Namespace) -> int:
    """Change the rules if asked to, then look."""
    if os.geteuid() != 0:
        raise Refused("node.not-root", "only root may look after the metadata service", advice="run it as root")
    if args.close:
        close(_allowed_uids())
    elif args.open:
        remove()
    found = state()
    if args.json:
        say_json({**found._asdict(), "problem": found.problem or None})
    else:
        say(f"instance metadata service: {found.words()}")
    if args.open:
        return EXIT_OK
    return EXIT_REFUSED if found.problem else EXIT_OK


def ruleset(uids: set[int]) -> str:
    """The rules, for ``nft -f``: they replace those of an earlier run in one step, and nobody slips through between.

    Who may is named and everybody else refused, so that a packet without an owner is refused as well. The chain for
    forwarded packets is for containers with a network of their own.
    """
    who = ", ".join(str(uid) for uid in sorted(uids))
    output = "".join(
        f"    {family} daddr {address} meta skuid {{ {who} }} accept\n    {family} daddr {address} reject\n"
        for family, address in ADDRESSES.items()
    )
    forward = "".join(f"    {family} daddr {address} reject\n" for family, address in ADDRESSES.items())
    return (
        f"table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n"
        f"  chain output {{\n    type filter hook output priority filter; policy accept;\n{output}  }}\n"
        f"  chain forward {{\n    type filter hook forward priority filter; policy accept;\n{forward}  }}\n}}\n"
    )


def close(uids: set[int]) -> None:
    """Load the rules. Raises ConfigError without nft, ProcessError when the kernel refuses them."""
    run([_nft(), "-f", "-"], timeout=TIMEOUT, input=ruleset(uids).encode("ascii"))


def remove() -> None:
    """Remove the rules, if they are there."""
    run([_nft(), "-f", "-"], timeout=TIMEOUT, input=f"table {TABLE}\ndelete table {TABLE}\n".encode("ascii"))


def state() -> State:
    """What a user would find; never raises."""
    return State(_rules(), _reached())


def _nft() -> str:
    try:
        return program("nft")
    except ProgramMissing as error:
        raise ConfigError(f"the metadata service cannot be closed: {error}", advice="install nftables") from None


def _rules() -> bool | None:
    try:
        done = run([program("nft"), "list", "table", *TABLE.split()], timeout=TIMEOUT, allowed=(0, 1))
    except ProcessError:
        return None
    return done.returncode == 0


def _reached() -> tuple[str, ...] | None:
    """The addresses that answer a user: tried by one, because rules of other kinds count as well."""
    found = []
    for address in ADDRESSES.values():
        try:
            argv = [program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
            argv += ["--bounding-set=-all", sys.executable, "-IS", "-c", _PROBE, address, str(PATIENCE)]
            said = run(argv, timeout=TIMEOUT).stdout.decode("ascii", "replace").strip()
        except ProcessError:
            return None
        if said == "open":
            found.append(address)
    return tuple(found)


def _allowed_uids() -> set[int]:
    """Root, the node daemon, and whom the site file names. What cannot be read or found out is left out, and said."""
    names = [DAEMON]
    try:
        config: dict[str, Any] = read_hook_config(HOOKS_JSON, check_sources=False)
        names += [str(name) for name in config["node"].get("metadata_users", [])]
    except ConfigError as error:
        _warn(f"closed to all but root and {DAEMON}, for there is no rendered configuration yet: {error}")
    uids = {0}
    for name in names:
        try:
            uids.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            _warn(f"there is no account {name}, so it gets no exception")
    return uids


def _warn(text: str) -> None:
    sys.stderr.write(printable(f"secure-slurm: {text}") + "\n")
