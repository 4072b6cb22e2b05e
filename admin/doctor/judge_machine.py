"""This machine: what would leave a job's data in clear, who reaches what, and whether there is room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from admin.doctor.finding import Finding, Silence, amount, fail, ok, some, warn

if TYPE_CHECKING:
    from admin.doctor.facts import (
        Attempt,
        Crypt,
        FileSystems,
        Fips,
        Leak,
        Metadata,
        ScratchPlace,
        SlurmNode,
        Space,
        Speed,
    )

# of a file system that audit lines or the state of jobs are written to
SPACE_WARN, SPACE_FAIL = 0.10, 0.02
SLOW = 300.0
"""MiB/s: a network of 2.5 Gbit/s. Below it the processor, not the disk, is what a job waits for."""
OPEN, REFUSED = "open", "refused"
_CLOSE = (
    "on a compute node: systemctl enable --now secure-slurm-imds; on ParallelCluster's head and login nodes: "
    "HeadNode: Imds: Secured: true"
)


def leaks(seen: tuple[Leak, ...], rule: str, fine: str) -> Finding:
    """What the Prolog would refuse for, of one rule."""
    found = [each for each in seen if each.rule == rule]
    if found:
        return fail(some(each.seen for each in found), found[0].fix)
    return ok(fine)


def head_leaks(seen: tuple[Leak, ...], rule: str, fine: str) -> Finding:
    """On a machine that no job runs on: of what daemons have in memory, which they hold for a moment only."""
    found = leaks(seen, rule, fine)
    return found._replace(state="warn") if found.state == "fail" else found


def metadata(seen: Metadata) -> Finding:
    """No user gets the instance's credentials."""
    if seen.reached is None:
        return fail("whether users reach the instance metadata service is not known", "install setpriv (util-linux)")
    if seen.reached:
        return fail(f"users reach the instance metadata service at {' and '.join(seen.reached)}", _CLOSE)
    return ok("closed to users" if seen.closed else "users do not reach any; no rules of ours are loaded")


def no_way_out(seen: tuple[Attempt, ...]) -> Finding:
    """Nothing answers from outside. A name that is resolved is a way for a few bytes at a time."""
    out = [each.target for each in seen if each.result == OPEN]
    if out:
        return fail(
            f"an ordinary user reaches {some(out, ', ')}",
            "take the route or the rule away: no internet gateway, NAT, peering or proxy; no egress beyond the VPC",
        )
    refused = [each.target for each in seen if each.result == REFUSED]
    if refused:
        return warn(
            f"somebody refused the connection to {some(refused, ', ')}",
            "is it a rule of your own that rejects? Then let it drop, or take the target out of doctor.outside",
        )
    named = [f"{each.target.rpartition(':')[0]} ({each.resolved[0]})" for each in seen if each.resolved]
    if named:
        return warn(
            f"names of the outside are resolved: {some(named, ', ')}",
            "a user can send data in names: a resolver that forwards to nobody, or Route 53 Resolver DNS Firewall",
        )
    return ok(f"none of {len(seen)} places outside answers: {some((each.target for each in seen), ', ')}")


def endpoints(seen: tuple[Attempt, ...]) -> Finding:
    """What the site cannot do without answers from inside the VPC."""
    away = [f"{each.target} ({each.result})" for each in seen if each.result != OPEN]
    if away:
        return fail(
            f"no answer from {some(away, ', ')}",
            "look at the VPC endpoint, its security group (443 from here) and its private DNS; or at doctor.endpoints",
        )
    return ok(f"{some((each.target for each in seen), ', ')} answer" if seen else "doctor.endpoints names none")


def fips(seen: Fips) -> Finding:
    """The kernel's FIPS mode, as doctor.fips wants it."""
    if seen.wanted and not seen.enabled:
        return fail(
            "FIPS mode is off, and doctor.fips is required", "fips-mode-setup --enable (or the image's way), reboot"
        )
    return ok({True: "on", False: "off", None: "this kernel has no such mode"}[seen.enabled])


def space(seen: tuple[Space, ...]) -> Finding:
    """Room for audit lines and state: without it tagged jobs are refused."""
    full, scarce = [], []
    for each in seen:
        # of some file systems (btrfs, many of the network's) the number of files is not limited: 0 of 0
        left = min(_share(each.free, each.total), _share(each.files_free, each.files))
        words = f"{each.path}: {amount(each.free)} and {each.files_free} files free ({left:.0%})"
        if left < SPACE_FAIL:
            full.append(words)
        elif left < SPACE_WARN:
            scarce.append(words)
    advice = "make room; the audit trail: secure-slurm audit export, then audit prune"
    if full:
        return fail(some([*full, *scarce]), advice)
    return (
        warn(some(scarce), advice)
        if scarce
        else ok("; ".join(f"{each.path}: {amount(each.free)} free" for each in seen))
    )


def _share(free: int, total: int) -> float:
    return free / total if total else 1.0


def encryption(seen: Crypt) -> Finding:
    """dm-crypt and the programs that the hooks run."""
    if seen.missing:
        return fail(
            f"not installed: {', '.join(seen.missing)}",
            "install cryptsetup, dmsetup, util-linux and the file system's tools",
        )
    if not seen.target:
        return fail("the kernel has no dm-crypt", "modprobe dm_crypt; install the kernel's package of modules")
    if seen.aes is False:
        return warn("the processor has no instructions for AES: scratch will be slow", "choose another type of machine")
    return ok("dm-crypt, its programs" + (", AES in the processor" if seen.aes else ""))


def speed(seen: Speed) -> Finding:
    """How fast the kernel encrypts here."""
    words = f"aes-xts with 512 bits: {seen.rate:.0f} MiB/s on one processor"
    return warn(words, "choose a machine with AES instructions") if seen.rate < SLOW else ok(words)


def scratch(seen: ScratchPlace, node: SlurmNode | Silence) -> Finding:
    """The place for scratch is safe, and holds at least the largest default.

    A node whose partitions demand no tag may do without: jobs that have scratch are sent elsewhere. As long as
    slurmctld has not said which partitions those are, it may not.
    """
    words = f"{seen.where}: {seen.problem}" if seen.problem else f"{seen.where}: {amount(seen.free)} free"
    advice = seen.advice
    if not seen.problem:
        if seen.free >= seen.needed:
            return ok(words)
        words += f", a default of the policy is {amount(seen.needed)}"
        advice = "make room, or give the node a larger disk"
    if isinstance(node, Silence) or node.demanding is None or node.demanding:
        return fail(words, advice)
    return warn(f"{words}; no partition of this node demands a tag", advice)


def file_systems(seen: FileSystems) -> Finding:
    """What the Prolog would hold tagged jobs for."""
    if seen.unlisted:
        return fail(
            f"writable, and not listed for {seen.place or 'a place in no jurisdiction'}: {some(seen.unlisted)}",
            "unmount them, mount them read-only, or add them to the jurisdiction's file_systems",
        )
    if seen.users:
        return warn(f"mounted by users: {some(seen.users)}", "tagged jobs are held here until they are unmounted")
    return ok(f"no writable network file system that is not listed for {seen.place}")
