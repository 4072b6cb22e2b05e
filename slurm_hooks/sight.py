"""What slurmctld hides from the lifecycle daemon (PrivateData=jobs), seen through SlurmUser's eyes.

SlurmUser may see every job, and secure-slurm-requeued, which is SlurmUser, asks the lifecycle daemon every 2 s for
work. So the daemon leaves a question there, the requeue daemon puts it to slurmctld by the same commands, and answers.
No right of the daemon's grows by that, and SlurmUser could tell it that a job is over before, too.

An answer counts when it is to this very question, and so is newer than what it is compared with; when the kernel says
that it comes from the account that slurmctld itself names as SlurmUser; when the slurmctld that was asked has the same
cluster, BOOT_TIME and next job number as the one that answers the daemon; and when all of it is there. Else nothing is
seen: jobs are hidden as before, and nothing is concluded from their absence.
"""

from __future__ import annotations

import logging
import re
import threading
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from conf.errors import BackendUnavailable
from slurm_hooks import wire
from slurm_hooks.serve import Answer, Fields, Handler, Peer
from slurm_hooks.slurmview import LIST_LIMIT, Controller, SlurmView, View, read_jobs

LOG = logging.getLogger(__name__)

FETCHED_WITHIN, ANSWERED_WITHIN = 15.0, 60.0
"""Seconds for the requeue daemon to take a question, and then to answer it."""
LARGEST = wire.MAX_BODY - 64 * 1024
"""Bytes of an answer, compressed; a job takes about twelve."""
JOBS, PLACES = "jobs", "places"

_NUMBERS = re.compile(r"[1-9][0-9]{0,9}(,[1-9][0-9]{0,9}){0,99}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_WORD = {True: "unknown", False: "known"}


class Told(NamedTuple):
    """An answer as it came. ``uid``: whose it is, by the kernel."""

    uid: int
    cluster: str
    boot: str
    next_job: int
    packed: bytes


class _Question:
    def __init__(self, what: str) -> None:
        self.name = wire.new_nonce()
        self.what = what
        self.fetched = threading.Event()
        self.answered = threading.Event()
        self.told: Told | None = None
        self.problem = "the daemon stops"


class Questions:
    """What is to be asked as SlurmUser; one question at a time, handed out once."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._open: _Question | None = None
        self._closed = False

    def ask(self, what: str) -> Told:
        """Wait for the answer. BackendUnavailable: there is none, or it says that there is none. Blocks."""
        with self._turn:
            question = self._open = _Question(what)
            try:
                if not self._closed and not question.fetched.wait(FETCHED_WITHIN):
                    raise BackendUnavailable(
                        "the requeue daemon, which sees the jobs that slurmctld hides, does not ask for work",
                        advice="start secure-slurm-requeued, as SlurmUser",
                    )
                if not self._closed and not question.answered.wait(ANSWERED_WITHIN):
                    raise BackendUnavailable("the requeue daemon was asked what slurmctld shows it, and is silent")
            finally:
                self._open = None
        if question.told is None:
            raise BackendUnavailable(question.problem)
        return question.told

    def beside(self, handler: Handler) -> Handler:
        """A verb of the requeue daemon's, with the question, if there is one, in its answer."""

        async def answer(fields: Fields, peer: Peer) -> Answer:
            given = await handler(fields, peer)
            question = self._open
            if question is None or question.fetched.is_set():
                return given
            question.fetched.set()
            return {**given, "see": question.name, "what": question.what}

        return answer

    async def seen(self, fields: Fields, peer: Peer) -> Answer:
        """The verb ``seen``: the answer to the question that is open; one to any other is dropped."""
        question = self._open
        if question is None or wire.text(fields, "see") != question.name or question.answered.is_set():
            return {"verdict": "allow", "taken": "0"}
        if "problem" in fields:
            question.problem = f"what SlurmUser sees: {wire.text(fields, 'problem')[:500]}"
        else:
            next_job = wire.text(fields, "next_job")
            if not _NUMBER.fullmatch(next_job):
                raise wire.WireError("the next job number in the request is not a number")
            names = wire.text(fields, "cluster"), wire.text(fields, "boot")
            question.told = Told(peer.uid, *names, int(next_job), fields.get("told", b""))
        question.answered.set()
        return {"verdict": "allow", "taken": "1"}

    def close(self) -> None:
        """Nobody is to wait any more."""
        self._closed = True
        question = self._open
        if question is not None:
            question.fetched.set()
            question.answered.set()


class Sighted(SlurmView):
    """As :class:`SlurmView`; where slurmctld hides jobs from this account, what SlurmUser sees, if that is known."""

    def __init__(self, slurm_bin: str, cluster: str, questions: Questions) -> None:
        super().__init__(slurm_bin, cluster)
        self._questions = questions
        self._problem = ""

    def look(self) -> View:
        """As it is without PrivateData; ``hides`` when nobody can say what is hidden."""
        view = super().look()
        if not view.controller.hides:
            return view
        try:
            jobs = read_jobs(self._shown(JOBS, view.controller))
        except BackendUnavailable as error:
            if str(error) != self._problem:
                LOG.warning("slurmctld hides jobs, and what it hides is not known: %s %s", error, error.advice)
            self._problem = str(error)
            return view
        self._problem = ""
        return View(view.controller._replace(hides=False), jobs)

    def places(self) -> str:
        """As there. BackendUnavailable when jobs are hidden and nobody can say where they are."""
        controller = self.controller()
        return self._shown(PLACES, controller) if controller.hides else super().places()

    def unknown(self, jobs: Iterable[int], before: Controller) -> frozenset[int]:
        """As there; none of which it is not known. What slurmctld says to this account counts if it hides nothing."""
        asked = list(jobs)
        if before.hides or not asked:
            return frozenset()
        now = self.controller()
        if now.boot != before.boot:
            raise BackendUnavailable("slurmctld was started anew while it was asked")
        if not now.hides:
            return super().unknown(asked, before)
        return read_unknown(self._shown(",".join(map(str, asked)), now), asked)

    def _shown(self, what: str, before: Controller) -> str:
        """SlurmUser's answer, whole, from the slurmctld that has answered and answers here; or BackendUnavailable."""
        if before.sees_all < 0:
            raise BackendUnavailable(
                "slurmctld hides jobs from SlurmUser too (MCSParameters=privatedata), or does not say who that is"
            )
        told = self._questions.ask(what)
        if told.uid != before.sees_all:
            raise BackendUnavailable(
                f"the requeue daemon runs as uid {told.uid}, and SlurmUser is uid {before.sees_all}",
                advice="see User= in secure-slurm-requeued.service, and cluster.slurm_user",
            )
        after = self.controller()
        same = (before.cluster, before.boot) == (told.cluster, told.boot) == (after.cluster, after.boot)
        if not same or not before.next_job <= told.next_job <= after.next_job:
            raise BackendUnavailable("the requeue daemon has asked another slurmctld, or one that was started anew")
        return unpacked(told.packed)


def unpacked(packed: bytes) -> str:
    """The text of an answer; BackendUnavailable when it is not whole, or longer than a list may be."""
    machine = zlib.decompressobj()
    try:
        text = machine.decompress(packed, LIST_LIMIT)
        if not machine.eof or machine.unused_data:
            raise ValueError
        return text.decode("ascii")
    except (zlib.error, ValueError):
        raise BackendUnavailable("what the requeue daemon has seen is cut, damaged or too long") from None


def read_unknown(text: str, asked: Iterable[int]) -> frozenset[int]:
    """The jobs that are unknown; BackendUnavailable unless there is a word about each that was asked for, in turn."""
    jobs = list(asked)
    words = [line.partition(" ")[2] for line in text.splitlines()]
    if len(words) != len(jobs) or text != _said(zip(jobs, (word == "unknown" for word in words), strict=True)):
        raise BackendUnavailable("what the requeue daemon has seen is not about these jobs, or not whole")
    return frozenset(job for job, word in zip(jobs, words, strict=True) if word == "unknown")


def _said(known: Iterable[tuple[int, bool]]) -> str:
    return "".join(f"{job} {_WORD[unknown]}\n" for job, unknown in known)


def see(slurm: SlurmView, what: str, alive: Callable[[], None]) -> dict[str, bytes | str]:
    """The fields of an answer, for who is SlurmUser; ``alive`` is called between two commands.

    BackendUnavailable: slurmctld gives none, another answers by now, or it is too long for a message.
    """
    before = slurm.controller()
    alive()
    if what == JOBS:
        text = slurm.listing()
    elif what == PLACES:
        text = slurm.places()
    elif _NUMBERS.fullmatch(what):
        text = _said((job, _is_unknown(slurm, job, alive)) for job in map(int, what.split(",")))
    else:
        raise BackendUnavailable("the lifecycle daemon asks what is not understood: of another version?")
    alive()
    slurm.check_same(before)
    packed = zlib.compress(text.encode("ascii"), 1)
    if len(packed) > LARGEST:
        raise BackendUnavailable(f"the list of jobs is too long: {len(packed)} bytes, compressed")
    return {"cluster": before.cluster, "boot": before.boot, "next_job": str(before.next_job), "told": packed}


def _is_unknown(slurm: SlurmView, job: int, alive: Callable[[], None]) -> bool:
    alive()
    return slurm.is_unknown(job)
