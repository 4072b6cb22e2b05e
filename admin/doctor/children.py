"""Whatever comes from the network is read in a child, as the account that it is for, and killed at its deadline.

So root never reads what a server sends, each account's own files and rights are what is tried, and a library that hangs
(libldap can, for ever, in a TLS handshake) ends with its process.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from typing import Any

from conf.errors import BackendUnavailable
from conf.render import LIBRARY
from keys.process import ProcessError, ProcessTimeout, program, run

NOBODY = "nobody"
MAX_ANSWER = 4 * 1024**2
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from admin.doctor.probe import main; sys.exit(main(sys.argv[1:]))"
)


def probe(account: str, words: list[str], seconds: float) -> Any:  # noqa: ANN401 - JSON
    """What :mod:`admin.doctor.probe` says of these words, as ``account``. BackendUnavailable: nothing, or too late."""
    return ask(account, [sys.executable, "-I", "-c", _START, LIBRARY, *words], seconds)


def ask(account: str, argv: list[str], seconds: float) -> Any:  # noqa: ANN401 - JSON
    """The JSON that a program prints, run as ``account`` and with none of root's powers."""
    try:
        done = run([*as_account(account), *argv], timeout=seconds, max_output=MAX_ANSWER)
        return json.loads(done.stdout)
    except ProcessTimeout:
        raise BackendUnavailable(f"no answer within {seconds:g} s") from None
    except ProcessError as error:
        raise BackendUnavailable(f"it could not be tried as {account}: {error.stderr or error}") from None
    except ValueError:
        raise BackendUnavailable("the answer cannot be read") from None


def as_account(account: str) -> list[str]:
    """The beginning of a command line by which root runs the rest as somebody else; nothing for who is not root."""
    if os.geteuid() != 0:
        return []
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        raise BackendUnavailable(
            f"there is no account {account}", advice="run install.sh for this machine's role"
        ) from None
    # the group is the account's own; those that it is in besides come with it
    who = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups"]
    return [program("setpriv"), *who, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
