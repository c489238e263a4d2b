"""The connections of one database, kept from the garbage collector, which would close them at the wrong moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

_held: set[Connections] = set()
"""Those that are not dropped yet. From Python 3.12 on the collector closes a connection that it finds together with who
held it, and SQLite moves its log into the file with the last one: disk work, in any thread, under any lock."""


@dataclass(eq=False, slots=True)
class Connections:
    """The connections of one database. Not thread-safe.

    Attributes:
        idle: for reading, which nobody uses just now.
        mine: the one that changes are made with, and the generation it is of.
        anchor: open as long as the file is: with its last connection SQLite would move the log into the file, digest
            or no.
    """

    idle: list[sqlite3.Connection] = field(default_factory=list)
    mine: tuple[int, sqlite3.Connection] | None = None
    anchor: sqlite3.Connection | None = None

    @property
    def held(self) -> bool:
        """Whether they are in use: not dropped since `hold`."""
        return self in _held

    def hold(self) -> None:
        """Keep them until they are dropped, whoever forgets them."""
        _held.add(self)

    def drop_idle(self) -> None:
        """Close those that nobody uses."""
        for connection in self.idle:
            connection.close()
        self.idle.clear()

    def drop_anchor(self) -> None:
        """Close the one that holds the file open."""
        if self.anchor is not None:
            self.anchor.close()
            self.anchor = None

    def drop_mine(self) -> None:
        """Close the one that writes."""
        if self.mine is not None:
            self.mine[1].close()
            self.mine = None

    def drop(self) -> None:
        """Close all of them."""
        self.drop_idle()
        self.drop_anchor()
        self.drop_mine()
        _held.discard(self)
