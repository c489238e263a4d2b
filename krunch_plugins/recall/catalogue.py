"""Which turn each vector belongs to, and what searches filter by: session, time, role, metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from krunch_plugins.recall.rows import Rows
from krunch_plugins.recall.search import holds
from krunch_plugins.recall.vectors import room

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from krunch_plugins.turns import SearchQuery, Turn

    Ids = NDArray[np.int64]

_FIRST_ROWS = 64
_GONE = -1
_SPENT_FROM = 4096


class Place(NamedTuple):
    """Where a turn is: its session's id and its number."""

    session: str
    number: int


class Catalogue:
    """The turns of one tenant, each under an id from 0 that no other turn gets, in numpy arrays; metadata as JSON.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._count = 0
        self._session: NDArray[np.int32] = np.full(_FIRST_ROWS, _GONE, dtype=np.int32)
        self._number: Ids = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._time: NDArray[np.float64] = np.zeros(_FIRST_ROWS, dtype=np.float64)
        self._role: NDArray[np.uint16] = np.zeros(_FIRST_ROWS, dtype=np.uint16)
        self._digest: Ids = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._metadata: dict[int, str] = {}
        self._roles: list[str] = []
        self._names: list[tuple[str, str]] = []  # (key, session's id) by the session's position
        self._positions: dict[str, int] = {}
        self._keys: dict[str, list[str]] = {}  # by session's id; more than one where it was forgotten and begun again
        self._turns: dict[str, Rows] = {}  # by key

    def __len__(self) -> int:
        return sum(map(len, self._turns.values()))

    def add(self, key: str, session: str, turn: Turn, digest: int) -> int:
        """Enter a turn; its id. One that is there already keeps its id."""
        turns = self._turns.setdefault(key, Rows())
        if turn.number in turns:
            return turns[turn.number]
        if key not in self._positions:
            self._positions[key] = len(self._names)
            self._names.append((key, session))
            self._keys.setdefault(session, []).append(key)
        new = self._count
        self._session = room(self._session, new + 1, _GONE)
        self._number = room(self._number, new + 1, 0)
        self._time = room(self._time, new + 1, 0)
        self._role = room(self._role, new + 1, 0)
        self._digest = room(self._digest, new + 1, 0)
        self._number[new], self._time[new], self._digest[new] = turn.number, turn.timestamp, digest
        self._role[new] = self._role_code(turn.message.get("role"))
        if turn.metadata:
            self._metadata[new] = json.dumps(dict(turn.metadata))
        self._session[new] = self._positions[key]
        turns[turn.number] = new
        self._count += 1
        return new

    def numbers(self, key: str) -> Mapping[int, int]:
        """Ids of a session's turns by their number, in the order of the numbers."""
        return self._turns.get(key, {})

    def keys(self, session: str) -> list[str]:
        """The keys under which turns of a session of this id are known."""
        return list(self._keys.get(session, ()))

    def drop(self, key: str, before: int | None = None) -> list[int]:
        """Take out a session's turns, all or those with lower numbers; their ids."""
        gone = self._turns[key].drop(before) if key in self._turns else []
        for row in gone:
            self._session[row] = _GONE
            self._number[row] = self._time[row] = self._role[row] = self._digest[row] = 0
            self._metadata.pop(row, None)
        if before is None and key in self._positions:
            self._turns.pop(key, None)
            position = self._positions.pop(key)
            session = self._names[position][1]
            self._keys[session].remove(key)
            if not self._keys[session]:
                del self._keys[session]
            self._names[position] = ("", "")
        return gone

    def place(self, row: int) -> Place | None:
        """Which turn an id is; None if it is gone."""
        position = int(self._session[row])
        return None if position == _GONE else Place(self._names[position][1], int(self._number[row]))

    def with_digest(self, digests: list[int], without: Collection[int] = ()) -> dict[int, int]:
        """For each of these digests that turns here have, the id of one of them that is not in `without`."""
        used = self._digest[: self._count]
        rows = np.flatnonzero(np.isin(used, digests) & (self._session[: self._count] != _GONE))
        rows = rows[~np.isin(rows, list(without))]
        return dict(zip(used[rows].tolist(), rows.tolist(), strict=True))

    def matching(self, query: SearchQuery) -> Ids | None:
        """Ids of the turns that a query's filters leave; None if it has no filter."""
        if query.session is None and not _filters(query):
            return None
        if query.session is None:
            rows = np.flatnonzero(self._session[: self._count] != _GONE)
        else:
            found = [row for key in self.keys(query.session) for row in self._turns[key].ids()]
            rows = np.array(found, dtype=np.int64)
        if query.after is not None:
            rows = rows[self._time[rows] >= query.after]
        if query.before is not None:
            rows = rows[self._time[rows] < query.before]
        if query.roles is not None:
            codes = [code for code, role in enumerate(self._roles) if role in query.roles]
            rows = rows[np.isin(self._role[rows], codes)]
        if query.metadata:
            rows = np.array([row for row in rows.tolist() if self._has(row, query.metadata)], dtype=np.int64)
        return rows

    @property
    def spent(self) -> bool:
        """Most ids are of turns that are gone, so that it pays to number the others anew."""
        return self._count > 2 * len(self) + _SPENT_FROM

    def renumbered(self) -> tuple[Catalogue, Ids]:
        """The same turns under new ids, without gaps, and the old id of each new one."""
        rows = np.flatnonzero(self._session[: self._count] != _GONE)
        state = self.state()
        for name in ("session", "number", "time", "role", "digest"):
            state[name] = state[name][rows]
        state["metadata"] = {
            new: state["metadata"][old] for new, old in enumerate(rows.tolist()) if old in self._metadata
        }
        positions = sorted(self._positions.values())
        state["sessions"] = [self._names[position] for position in positions]
        state["session"] = np.searchsorted(positions, state["session"]).astype(np.int32)
        return Catalogue.of(state), rows

    def state(self) -> dict[str, Any]:
        """All of it, for a snapshot."""
        count = self._count
        return {
            "sessions": list(self._names),
            "roles": list(self._roles),
            "metadata": dict(self._metadata),
            "session": self._session[:count].copy(),
            "number": self._number[:count].copy(),
            "time": self._time[:count].copy(),
            "role": self._role[:count].copy(),
            "digest": self._digest[:count].copy(),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Catalogue:
        """The catalogue that `state` gave."""
        found = cls()
        found._session, found._number, found._time = state["session"], state["number"], state["time"]
        found._role, found._digest = state["role"], state["digest"]
        found._count = len(found._session)
        found._metadata, found._roles, found._names = state["metadata"], state["roles"], state["sessions"]
        found._positions = {key: at for at, (key, _) in enumerate(found._names) if key}
        found._turns = {key: Rows() for key in found._positions}
        for key, at in found._positions.items():
            found._keys.setdefault(found._names[at][1], []).append(key)
        for row, (position, number) in enumerate(zip(found._session.tolist(), found._number.tolist(), strict=True)):
            if position != _GONE:
                found._turns[found._names[position][0]][number] = row
        return found

    def _role_code(self, role: object) -> int:
        """Roles by position. There are a handful; where somebody makes them up, the 65,536th and later share a code."""
        name = role if isinstance(role, str) else ""
        if name not in self._roles:
            if len(self._roles) > np.iinfo(np.uint16).max:
                return np.iinfo(np.uint16).max
            self._roles.append(name)
        return self._roles.index(name)

    def _has(self, row: int, wanted: Mapping[str, Any]) -> bool:
        return holds(json.loads(self._metadata.get(row, "{}")), wanted)


def _filters(query: SearchQuery) -> bool:
    return any(one is not None for one in (query.after, query.before, query.roles)) or bool(query.metadata)
