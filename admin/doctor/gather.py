"""Every door at once, each in a thread of its own; who has not answered by its deadline is left behind."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from admin.doctor.finding import Silence
from conf.errors import SecureSlurmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from admin.doctor.scene import Scene


class Door(NamedTuple):
    """``look`` gives a fact, or raises. ``seconds``: when it is no longer waited for."""

    look: Callable[[Scene], object]
    seconds: Callable[[Scene], float] | float
    needs_site: bool = True

    def deadline(self, scene: Scene) -> float:
        """For this machine: some depend on its site file."""
        return self.seconds if isinstance(self.seconds, int | float) else self.seconds(scene)


def gather(doors: Mapping[str, Door], scene: Scene) -> dict[str, object]:
    """The fact behind each door, or :class:`Silence`. Returns at the latest deadline, whatever hangs.

    The threads are daemons: one that hangs in a system call does not keep the command from ending.
    """
    found: dict[str, object] = {}

    def look(name: str, door: Door) -> None:
        try:
            found[name] = door.look(scene)
        except SecureSlurmError as error:
            found[name] = Silence(str(error), error.advice)
        except OSError as error:
            found[name] = Silence(f"it cannot be looked at: {error.strerror or type(error).__name__}")
        except Exception as error:  # noqa: BLE001 - its text could hold anything; one door must not close the others
            found[name] = Silence(f"a defect of secure-slurm ({type(error).__name__})", "report it")

    began = time.monotonic()
    threads = {name: threading.Thread(target=look, args=(name, door), daemon=True) for name, door in doors.items()}
    for thread in threads.values():
        thread.start()
    told: dict[str, object] = {}
    for name, thread in threads.items():
        allowed = doors[name].deadline(scene)
        thread.join(max(0.0, began + allowed - time.monotonic()))
        # a fact may be empty: only its absence is silence
        told[name] = found[name] if name in found else Silence(f"no answer within {allowed:g} s")
    return told
