"""Slurm's accounting as ``sacct --json`` writes it, job by job: from the database, or from a file that was saved.

The answer of a large site has gigabytes, so it is never held whole: it is read piece by piece, and the database is
asked about a part of the time after the other (sacct builds its answer in memory before it writes any of it).
"""

from __future__ import annotations

import codecs
import json
import os
import re
import time
from collections.abc import Callable, Generator
from pathlib import Path

from conf.errors import BackendUnavailable, ConfigError
from keys.process import ProcessError, run

JSON = "--json=v0.0.42"
"""The one form that 24.11 and 26.05 both write."""
ASK_TIMEOUT = 900.0
"""Seconds for one answer, and for what is done with it meanwhile."""
MAX_ENTRY = 16 * 1024 * 1024
"""Characters of one job. The largest that Slurm itself writes have a script of 4 MB (max_script_size) in them."""
MAX_ANSWER = 1 << 40
DAY = 86400
FIRST = 3600
SHORTEST = 300
"""Seconds that one question is about."""
MANY = 5000
"""Jobs that one answer should not have more of: sacct takes 100 KB for each (24.11: 10 GB for 100,000, measured)."""
_CHUNK = 1024 * 1024
_SPACE = re.compile(r"[ \t\n\r]*")
_END = re.compile(r"[ \t\n\r]*[]},:]")

Take = Callable[[object], None]
"""Called with each entry of ``jobs``, which is whatever the file has there."""


class Damaged(ConfigError):
    """This is not what ``sacct --json`` writes."""


class Parser:
    """``{"jobs": [...], ...}`` in pieces of any size; every entry of ``jobs`` goes to ``take`` once it is whole.

    Bytes that are not UTF-8 become lone surrogates. Raises :class:`Damaged` for what is no such text, and for an entry
    of more than :data:`MAX_ENTRY` characters.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        # surrogateescape: Slurm writes the bytes of a job's name as they are
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder(strict=False, parse_constant=lambda _: None)
        self._pieces: list[str] = []
        self._new = 0
        self._text = ""
        self._at = 0
        self._last = False
        self._walk = self._document()
        self.entries = 0

    def feed(self, data: bytes) -> None:
        """The next piece."""
        self._pieces.append(self._decoder.decode(data))
        self._new += len(data)
        # an entry that is not whole is read again from its beginning: not for every few bytes
        if self._new >= _CHUNK:
            self._step()

    def close(self) -> None:
        """There is nothing more. Damaged unless it was a whole document."""
        self._pieces.append(self._decoder.decode(b"", final=True))
        self._last = True
        self._step()
        if self._text[self._at :].strip():
            raise Damaged("it goes on behind its end")

    def _step(self) -> None:
        self._text = "".join([self._text, *self._pieces])
        self._pieces, self._new = [], 0
        next(self._walk, None)
        self._text, self._at = self._text[self._at :], 0
        if len(self._text) > MAX_ENTRY:
            raise Damaged(f"one job has more than {MAX_ENTRY} characters, or it is no JSON")

    # Each of these yields when it needs more text.

    def _document(self) -> Generator[None, None, None]:
        found = False
        yield from self._expect("{")
        if (yield from self._is_next("}")):
            raise Damaged("it has no 'jobs'")
        while True:
            key = yield from self._value()
            yield from self._expect(":")
            if key == "jobs":
                found = True
                yield from self._entries()
            else:
                yield from self._value()
            if not (yield from self._is_next(",")):
                break
        yield from self._expect("}")
        if not found:
            raise Damaged("it has no 'jobs'")

    def _entries(self) -> Generator[None, None, None]:
        yield from self._expect("[")
        if (yield from self._is_next("]")):
            return
        while True:
            entry = yield from self._value()
            self.entries += 1
            self._take(entry)
            if not (yield from self._is_next(",")):
                break
        yield from self._expect("]")

    def _value(self) -> Generator[None, None, object]:
        while True:
            yield from self._more()
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # whether it is wrong or only cut off here, more text will tell
                problem = error.msg
            except (ValueError, RecursionError):
                raise Damaged("it has a number or a nesting that nobody means") from None
            else:
                # a number may go on in the next piece: "1" and ".5"
                if _END.match(self._text, end) or self._last:
                    self._at = end
                    return value
                problem = "it ends too early"
            if self._last:
                raise Damaged(f"it is no JSON: {problem}")
            yield

    def _more(self) -> Generator[None, None, None]:
        """Go to the next character that is no space."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or self._last:
                return
            yield

    def _is_next(self, character: str) -> Generator[None, None, bool]:
        yield from self._more()
        if not self._text.startswith(character, self._at):
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> Generator[None, None, None]:
        if not (yield from self._is_next(character)):
            raise Damaged(f"{character!r} is missing")


def read(path: str, take: Take) -> None:
    """Every job of a file that ``sacct --json`` wrote. ConfigError: it cannot be read, or is something else."""
    parser = Parser(take)
    try:
        for piece in _pieces(path):
            parser.feed(piece)
        parser.close()
    except Damaged as error:
        raise ConfigError(
            f"{path} is not what sacct --json writes, at its entry {parser.entries + 1}: {error}",
            advice=f"write it again: sacct {JSON} --allusers --allocations --starttime=... > FILE",
        ) from None


def _pieces(path: str) -> Generator[bytes, None, None]:
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; what the reader of a piece raises is not this file's
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    with file:
        while True:
            try:
                data = file.read(_CHUNK)
            except OSError as error:
                raise _unreadable(path, error) from None
            if not data:
                return
            yield data


def _unreadable(path: str, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else "there can be no such name"
    return ConfigError(f"{path} cannot be read: {reason}", advice="name a file that sacct --json wrote")


def ask(slurm_bin: str, days: int, take: Take, now: float) -> None:
    """Every job that the accounting database has for the last ``days``, each once, the older first.

    Raises BackendUnavailable when sacct fails, or does not end in time.
    """
    once = _Once(take)
    start, length, last = int(now) - days * DAY, FIRST, int(now)
    while start < last:
        end = min(start + length, last)
        once.next_part(end)
        _ask(slurm_bin, start, end if end < last else None, once.take)
        # Where more jobs are told again than new ones come, shorter parts would only tell them more often.
        if once.new > max(MANY, once.again):
            length = max(SHORTEST, length // 2)
        elif once.new < MANY // 2:
            length = min(DAY, length * 2)
        start = end


class _Once:
    """A job that goes on behind the end of a part is told again by the next one."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._told: set[tuple[str, str]] = set()
        self._going_on: set[tuple[str, str]] = set()
        self._end = 0
        self.new = 0
        self.again = 0

    def next_part(self, end: int) -> None:
        """What is told from now on are the jobs of the part that ends then."""
        self._told, self._going_on, self._end = self._going_on, set(), end
        self.new = self.again = 0

    def take(self, entry: object) -> None:
        """Hand an entry on, unless the part before has told it."""
        if isinstance(entry, dict):
            name = str(entry.get("cluster")), str(entry.get("job_id"))
            times = entry.get("time")
            ended = times.get("end") if isinstance(times, dict) else None
            if not isinstance(ended, int) or not 0 < ended < self._end:
                self._going_on.add(name)
            if name in self._told:
                self.again += 1
                return
        self.new += 1
        self._take(entry)


def _ask(slurm_bin: str, start: int, end: int | None, take: Take) -> None:
    argv = [f"{slurm_bin}/sacct", JSON, "--allusers", "--allocations", f"--starttime={_time(start)}"]
    if end is not None:
        argv.append(f"--endtime={_time(end)}")
    # the one variable of the caller's that says which cluster is meant; TZ: the times above are in UTC
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    parser = Parser(take)
    try:
        run(argv, timeout=ASK_TIMEOUT, env_extra={**where, "TZ": "UTC"}, max_output=MAX_ANSWER, sink=parser.feed)
        parser.close()
    except ProcessError as error:
        raise BackendUnavailable(
            f"the accounting does not answer: {error.stderr or error}",
            advice="is slurmdbd running, and accounting_storage/slurmdbd in slurm.conf? A saved answer: --jobs FILE",
        ) from None
    except Damaged as error:
        raise BackendUnavailable(
            f"sacct's answer cannot be read: {error}", advice=f"does this Slurm know {JSON}?"
        ) from None


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
