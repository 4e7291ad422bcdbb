"""One writer for a folder in an object store, which has no `flock`.

The objects lock/000001, lock/000002, ... are terms, and the newest one is the lock. A process takes it by creating the next
one, which the store lets only one do. The holder writes its term again every BEAT seconds. Without that for LOST seconds by
the store's own clock, another process may take the next term. A holder that has lost its term notices before it writes.
"""

import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.stores import RemoteFolder

BEAT, LOST = 20.0, 300.0  # seconds
LOCK = "lock"


@dataclass(frozen=True)
class Term:
    """The newest term, as the store has it.

    written: when, by the store's clock.
    holder: the process, for a person.
    token: what its holder knows it by.
    released: it was given up.
    """

    number: int
    written: datetime
    holder: str
    token: str
    released: bool


class Lease:
    """The right of this process to write into a folder. Use it as a context manager.

    token: of this term.
    continued: the term before was this machine's too, so nobody else has written since.
    """

    def __init__(self, folder: RemoteFolder, mine: str, lost: Callable[[str], object]):
        """Nothing is taken yet.

        Args:
            folder: that is written into.
            mine: the token of a term whose holder has died on this machine; '' if there is none.
            lost: is told, in a thread, who has taken the folder over.
        """
        self._folder, self._terms, self._mine, self._lost = folder, folder.below(LOCK), mine, lost
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"
        self.token, self.continued, self._number = secrets.token_hex(8), False, 1
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Raises InUse if another process has it, and UserError as the folder's methods."""
        if last := self._newest():
            self.continued = bool(self._mine) and last.token == self._mine
            if self.continued:
                self.token = last.token
            elif not last.released:
                self._check_lost(last)
            self._number = last.number + 1
        if not self._terms.create(self._name, self._content(released=False)):
            raise InUse(f"--workdir={self._folder.url} was taken by another process at this moment")
        self._terms.delete([name for name in self._terms.list() if name.isdecimal() and int(name) < self._number])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The term is over in LOST seconds, or at once after `release`."""
        self._closed.set()
        self._thread.join()

    def check(self) -> None:
        """Call it before writing. Raises InUse if another process has taken the folder over."""
        last = self._newest()
        if last is None or last.number != self._number:
            who = last.holder if last else "someone who has deleted its lock"
            raise InUse(f"--workdir={self._folder.url} was taken over by {who}")

    def release(self) -> None:
        """Gives the term up, if this process still has it. Raises UserError as the folder's methods."""
        self._closed.set()
        self._thread.join()
        self._terms.write(self._name, self._content(released=True))

    def _newest(self) -> Term | None:
        """None if nobody has written to the folder. Raises UserError as the folder's methods."""
        found = {int(name): entry for name, entry in self._terms.list().items() if name.isdecimal()}
        if not found:
            return None
        number = max(found)
        try:
            content = json.loads(self._terms.read(f"{number:06d}") or b"{}")
        except ValueError:
            content = {}
        said: dict[str, Any] = content if isinstance(content, dict) else {}
        holder, token = str(said.get("holder", "another process")), str(said.get("token", ""))
        return Term(number, found[number].modified, holder, token, bool(said.get("released")))

    def _check_lost(self, last: Term) -> None:
        """Raises InUse unless the holder has been silent for long."""
        silent = (self._terms.now() - last.written).total_seconds()
        if silent < LOST:
            raise InUse(
                f"--workdir={self._folder.url} is in use by {last.holder}, which wrote to its lock {max(silent, 0):.0f} s "
                f"ago; if it is dead, run this again in {LOST - silent:.0f} s"
            )
        print(f"note: {self._folder.url} is taken over from {last.holder}, silent for {silent:.0f} s", file=sys.stderr)

    @property
    def _name(self) -> str:
        return f"{self._number:06d}"

    def _content(self, *, released: bool) -> bytes:
        return json.dumps({"holder": self._holder, "token": self.token, "released": released}).encode() + b"\n"

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                self.check()
                self._terms.write(self._name, self._content(released=False))
            except InUse as error:
                self._lost(str(error))
                return
            except UserError:
                continue  # the store is away: whether the term is lost is known when it is back
