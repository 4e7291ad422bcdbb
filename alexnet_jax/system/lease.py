"""One writer for a folder in an object store, which has no `flock`.

The objects lock/000001, lock/000002, ... are terms, and the newest one is the lock. A process takes it by creating the next
one, which the store lets only one do. The holder writes its term again every BEAT seconds. Without that for LOST seconds by
the store's own clock, another process may take the next term. A holder that has lost its term notices before it writes.
"""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.stores import RemoteFolder

BEAT, LOST = 20.0, 300.0  # seconds
LOCK = "lock"


@dataclass(frozen=True)
class Term:
    """One term, as the store has it.

    holder: the process, for a person.
    copy: the local copy that it works on. That has a `flock` of its own, so of two with one copy the earlier one is dead.
    since: the first term from which on all have been this copy's.
    """

    number: int
    since: int
    holder: str
    copy: str
    released: bool

    @property
    def name(self) -> str:
        """Of its object."""
        return f"{self.number:06d}"


def newest(folder: RemoteFolder) -> Term | None:
    """The newest term of a folder; None if nobody has written there. Raises UserError as the folder's methods."""
    terms = folder.below(LOCK)
    numbers = [int(name) for name in terms.list() if name.isdecimal()]
    if not numbers:
        return None
    try:
        content = json.loads(terms.read(f"{max(numbers):06d}") or b"{}")
    except ValueError:
        content = {}
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    holder, copy, since = found.get("holder", "another process"), found.get("copy", ""), found.get("since")
    since = since if isinstance(since, int) else max(numbers)
    return Term(max(numbers), since, str(holder), str(copy), bool(found.get("released")))


class Lease:
    """The right of this process to write into a folder. Use it as a context manager: leaving gives it up."""

    def __init__(self, folder: RemoteFolder, copy: str, lost: Callable[[str], object]):
        """Nothing is taken yet.

        Args:
            folder: that is written into.
            copy: as of `Term`.
            lost: is told, in a thread, who has taken the folder over.
        """
        self._folder, self._terms, self._lost = folder, folder.below(LOCK), lost
        self._term = Term(1, 1, f"process {os.getpid()} on {socket.gethostname()}", copy, released=False)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Raises InUse if another process has it, and UserError as the folder's methods."""
        last = newest(self._folder)
        if last is not None:
            self._check_over(last)
            number = last.number + 1
            since = last.since if last.copy == self._term.copy else number
            self._term = replace(self._term, number=number, since=since)
        if not self._terms.create(self._term.name, self._content(released=False)):
            raise InUse(f"--workdir={self._folder.url} was taken by another process at this moment")
        self._terms.delete([name for name in self._terms.list() if name.isdecimal() and int(name) < self._term.number])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        try:
            with contextlib.suppress(InUse):  # which has been told
                self.check()
                self._terms.write(self._term.name, self._content(released=True))
        except UserError as error:  # then it is over in LOST seconds
            print(f"warning: the lock is not given up: {error}", file=sys.stderr)

    @property
    def number(self) -> int:
        """Of the term."""
        return self._term.number

    def check(self) -> None:
        """Call it before writing. Raises InUse if another process has taken the folder over."""
        last = newest(self._folder)
        if last is None or last.number != self._term.number:
            who = last.holder if last else "someone who has deleted its lock"
            raise InUse(f"--workdir={self._folder.url} was taken over by {who}")

    def _check_over(self, last: Term) -> None:
        """Raises InUse unless a term has been given up, or its holder is dead."""
        if last.released or last.copy == self._term.copy:
            return
        written = self._terms.list()[last.name].modified
        silent = (self._terms.now() - written).total_seconds()
        if silent < LOST:
            raise InUse(
                f"--workdir={self._folder.url} is in use by {last.holder}, which wrote to its lock {max(silent, 0):.0f} s "
                f"ago; if it is dead, run this again in {LOST - silent:.0f} s"
            )
        print(f"note: {self._folder.url} is taken over from {last.holder}, silent for {silent:.0f} s", file=sys.stderr)

    def _content(self, *, released: bool) -> bytes:
        term = {"holder": self._term.holder, "copy": self._term.copy, "since": self._term.since, "released": released}
        return json.dumps(term).encode() + b"\n"

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                self.check()
                self._terms.write(self._term.name, self._content(released=False))
            except InUse as error:
                self._lost(str(error))
                return
            except UserError:
                continue  # the store is away: whether the term is lost is known when it is back
