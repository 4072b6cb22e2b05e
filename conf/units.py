"""Sizes and durations as people write them. Standard library only.

A size's K, M, G, T and P are powers of 1024, as in Slurm (sbatch(1), ``--mem``) and coreutils. A bare number is
refused: Slurm would read it as mebibytes and coreutils as bytes. So is ``10GB``: 10^10 bytes to coreutils.
"""

from __future__ import annotations

import re

from conf.errors import UsageError
from conf.quote import quote

# loff_t, in which the kernel counts a file's bytes, is a signed 64-bit number
MAX_SIZE = 2**63 - 1
MAX_DURATION = 3650 * 86400.0

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = re.compile(r"([0-9]{1,19})(B|[KMGTP](?:iB)?)", re.ASCII | re.IGNORECASE)
_DECIMAL_SIZE = re.compile(r"[0-9]+([KMGTP])B", re.ASCII | re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)", re.ASCII)


def parse_size(text: str) -> int:
    """``200M``, ``10G``, ``1TiB``, ``512B`` as bytes.

    Raises UsageError for a missing or decimal unit, a fraction, a sign, or more than 2^63-1 bytes.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise UsageError(_what_is_wrong_with_size(text), advice="write a whole number and K, M, G, T or P, as in 200M")
    size = int(found[1]) * _UNITS[found[2][0].upper()]
    if size > MAX_SIZE:
        raise UsageError(f"{quote(text)} is more than a file can hold", advice="the most is 8191P")
    return size


def _what_is_wrong_with_size(text: str) -> str:
    decimal = _DECIMAL_SIZE.fullmatch(text)
    if decimal:
        unit = decimal[1].upper()
        return f"{quote(text)} is ambiguous: {unit}B is a power of 1000 to some and of 1024 to others; {unit} is 1024"
    if text.isascii() and text.isdigit():
        return f"{quote(text)} has no unit: Slurm would read it as mebibytes, others as bytes"
    return f"{quote(text)} is not a size such as 200M, 10G or 1T"


def format_size(size: int) -> str:
    """The shortest exact text that :func:`parse_size` reads back as ``size`` bytes; ValueError for a negative size."""
    if size < 0:
        raise ValueError("a size is never negative")
    for unit in ("P", "T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return f"{size}B"


def parse_duration(text: str) -> float:
    """``200ms``, ``5s``, ``10m`` (minutes), ``12h``, ``30d`` as seconds.

    Raises UsageError for a missing unit, a fraction, zero (a deadline of zero would refuse or wait for ever, by whom
    reads it), or more than 3650 days.
    """
    found = _DURATION.fullmatch(text)
    if not found:
        raise UsageError(
            f"{quote(text)} is not a duration such as 200ms, 5s, 10m, 12h or 30d",
            advice="write a whole number and ms, s, m (minutes), h or d",
        )
    # divided, not multiplied by 0.001: 200ms must be exactly the number that 0.2 is
    amount = int(found[1])
    seconds = amount / 1000 if found[2] == "ms" else amount * _SECONDS[found[2]]
    if not 0 < seconds <= MAX_DURATION:
        raise UsageError(f"{quote(text)} must be longer than zero and at most 3650d", advice="write it as in 5s or 12h")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest text that :func:`parse_duration` reads back, to the millisecond."""
    millis = round(seconds * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if millis and millis % length == 0:
            return f"{millis // length}{unit}"
    return f"{millis}ms"
