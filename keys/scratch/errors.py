"""What can go wrong with scratch, by whose fault it is: the job's, or the node's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conf.errors import InternalError, Refused

if TYPE_CHECKING:
    from keys.scratch.report import Report


class ScratchTooLarge(Refused):
    """The job asked for more than this node has free: the job's fault, the node stays in service."""

    def __init__(self, message: str, *, advice: str = "ask for less scratch, or for nodes with more space") -> None:
        super().__init__("scratch.no-space", message, advice=advice)


class NodeBroken(InternalError):
    """This node cannot give, or cannot take away, encrypted scratch: something on it is missing, wrong or stuck."""


class UnsafePath(NodeBroken):
    """A folder that root works in could be changed by somebody else, or is not a folder."""


class JobEnded(InternalError):
    """A start that may no longer give its job anything: the job was torn down here since, or started anew.

    Not a Refused: for that the Prolog holds the job by its number, which by now may be a later start's that runs.
    """


class ScratchLeft(NodeBroken):
    """A tear-down ended and something is still there. ``report`` says what was done and what is left."""

    def __init__(self, message: str, report: Report, *, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.report = report
