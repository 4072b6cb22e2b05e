"""A byte string that will not be printed."""

from __future__ import annotations

import contextlib
from typing import NoReturn, Self


class Secret:
    """Key material: readable through :meth:`reveal` only, and zeroed by :meth:`wipe`.

    ``str``, ``repr``, ``format`` and pickling never show the content, so that no log line, exception or traceback
    can carry it. Use it as a context manager: the buffer is zeroed on the way out, whatever happened.
    CPython may have copied the bytes before they got here (a JSON string, a socket buffer); this shortens the time
    that they lie in memory, it cannot promise that no copy is left.
    """

    __slots__ = ("_buffer",)

    def __init__(self, data: bytes | bytearray) -> None:
        self._buffer = data if isinstance(data, bytearray) else bytearray(data)

    def reveal(self) -> memoryview:
        """A view of the content, for a pipe or a socket; empty once wiped."""
        return memoryview(self._buffer)

    def wipe(self) -> None:
        """Overwrite the content with zeros; may be called again."""
        self._buffer[:] = bytes(len(self._buffer))
        # a view that is still out keeps the length; its content is zeros by now
        with contextlib.suppress(BufferError):
            del self._buffer[:]

    def __len__(self) -> int:
        return len(self._buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")
