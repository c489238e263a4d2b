"""Tests for those who write a tier: subclass a suite, say how to make the tier, and let pytest run it.

    from krunch_plugins.testing import ColdTierSuite

    class TestMyTier(ColdTierSuite):
        def make(self, directory):
            return MyTier(directory)

The suites need pytest and nothing else.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from krunch_plugins.storage.store import ConversationStore
from krunch_plugins.turns import Turn

if TYPE_CHECKING:
    from pathlib import Path

    from krunch_plugins.storage.cold import ColdTier
    from krunch_plugins.storage.hot import HotTier

__all__ = ["ColdTierSuite", "HotTierSuite"]


def _turns(start: int, stop: int, text: str = "text") -> list[Turn]:
    return [
        Turn(number, {"role": "user", "content": f"{text} {number}"}, 1000.0 + number) for number in range(start, stop)
    ]


def _numbers(turns: list[Turn]) -> list[int]:
    return [turn.number for turn in turns]


class _Stop(Exception):  # noqa: N818 - stands for any failure in the middle of a transaction
    """Raised by the suite inside a transaction."""


class ColdTierSuite:
    """What every cold tier must do."""

    def make(self, directory: Path) -> ColdTier:
        """A tier over `directory`; a second one over the same directory sees the same data."""
        raise NotImplementedError

    def test_gives_back_what_was_put(self, tmp_path: Path) -> None:
        """A value comes back byte by byte; a key that was never put has none."""
        tier = self.make(tmp_path)
        values = {"s/a": b"", "l/a/0": bytes(range(256)), "g/a/0": b"x" * 3_000_000}
        with tier.transaction():
            for key, value in values.items():
                tier.put(key, value)

        assert {key: tier.get(key) for key in values} == values
        assert tier.get("s/b") is None
        assert set(tier.keys()) == set(values)
        assert tier.size() > 0
        tier.close()

    def test_replaces_and_deletes(self, tmp_path: Path) -> None:
        """The last value under a key counts; a deleted key has none, and deleting says whether it was there."""
        tier = self.make(tmp_path)
        with tier.transaction():
            tier.put("k", b"old")
            tier.put("k", b"new")
            tier.put("gone", b"value")
        with tier.transaction():
            there, again = tier.delete("gone"), tier.delete("gone")

        assert tier.get("k") == b"new"
        assert tier.get("gone") is None
        assert (there, again) == (True, False)
        tier.close()

    def test_a_transaction_is_all_or_nothing(self, tmp_path: Path) -> None:
        """If a transaction raises, nothing of it happened; the tier goes on working."""
        tier = self.make(tmp_path)
        with tier.transaction():
            tier.put("kept", b"before")
        with pytest.raises(_Stop), tier.transaction():  # noqa: PT012 - what comes before the failure is the point
            tier.put("kept", b"after")
            tier.put("new", b"value")
            tier.delete("kept")
            raise _Stop

        assert tier.get("kept") == b"before"
        assert tier.get("new") is None
        with tier.transaction():
            tier.put("new", b"value")
        assert tier.get("new") == b"value"
        tier.close()

    def test_transactions_nest(self, tmp_path: Path) -> None:
        """A transaction within one belongs to it, and what was put is read within."""
        tier = self.make(tmp_path)
        with pytest.raises(_Stop), tier.transaction():  # noqa: PT012 - as above
            with tier.transaction():
                tier.put("inner", b"value")
            assert tier.get("inner") == b"value"
            raise _Stop

        assert tier.get("inner") is None
        tier.close()

    def test_others_see_what_was_committed(self, tmp_path: Path) -> None:
        """A second tier on the same data sees a committed change, and its version tells that there is one."""
        one, other = self.make(tmp_path), self.make(tmp_path)
        before = other.version()
        unchanged = other.version()
        with one.transaction():
            one.put("k", b"value")

        assert unchanged == before
        assert other.version() != before
        assert other.get("k") == b"value"
        one.close()
        other.close()

    def test_survives_closing(self, tmp_path: Path) -> None:
        """What was committed is there when the tier is opened again."""
        tier = self.make(tmp_path)
        with tier.transaction():
            tier.put("k", b"value")
        tier.close()
        again = self.make(tmp_path)

        assert again.get("k") == b"value"
        again.close()

    def test_transactions_take_turns(self, tmp_path: Path) -> None:
        """Threads that read and write in transactions lose no update."""
        tier = self.make(tmp_path)
        with tier.transaction():
            tier.put("count", b"0")

        def work(_: int) -> None:
            for _ in range(25):
                with tier.transaction():
                    tier.put("count", str(int(tier.get("count") or b"0") + 1).encode())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))

        assert tier.get("count") == b"200"
        tier.close()

    def test_scrubs(self, tmp_path: Path) -> None:
        """After scrubbing, no byte of what was deleted or replaced is left in any file."""
        tier = self.make(tmp_path)
        with tier.transaction():
            tier.put("deleted", b"SECRET-ONE" * 2000)
            tier.put("replaced", b"SECRET-TWO" * 20)
            tier.put("kept", b"KEPT" * 20)
        with tier.transaction():
            tier.delete("deleted")
            tier.put("replaced", b"fine")

        assert tier.scrub()
        left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"SECRET" not in left
        assert tier.get("kept") == b"KEPT" * 20
        tier.close()

    def test_carries_a_store(self, tmp_path: Path) -> None:
        """A ConversationStore over it keeps, packs, forgets and checks conversations."""
        messages = [{"role": "user", "content": f"message {number} " * 20} for number in range(250)]
        with ConversationStore(cold=self.make(tmp_path), upkeep_seconds=0) as store:
            for start in range(0, 250, 10):
                store.append("a", messages[start : start + 10], tenant="t")
            store.append("b", messages[:3])
            store.forget("b")

            assert [turn.message for turn in store.turns("a", tenant="t")] == messages
            assert store.turns("a") == store.turns("b") == []
            assert store.check().ok


class HotTierSuite:
    """What every hot tier must do. It may lose anything at any time, but what it says must be right."""

    def make(self, max_bytes: int, max_turns: int, ttl: float, clock: list[float]) -> HotTier:
        """An empty tier with these limits (bytes, turns a session, seconds); `clock[0]` is the time."""
        raise NotImplementedError

    def test_holds_the_newest(self) -> None:
        """Recent turns come in order, the newest last, at most as many as asked for."""
        tier = self.make(1 << 20, 10, 60, [0.0])
        tier.append("a", _turns(0, 5))
        tier.append("a", _turns(5, 8))

        assert tier.recent("a", 3) == _turns(5, 8)
        assert tier.recent("a", 99) == _turns(0, 8)
        assert tier.recent("a", 0) == tier.recent("b", 3) == []
        assert tier.keys() == ["a"]
        assert tier.size() > 0

    def test_holds_a_gapless_run(self) -> None:
        """Turns after a gap replace what is held; older ones are ignored; overlaps are not doubled."""
        tier = self.make(1 << 20, 10, 60, [0.0])
        tier.append("a", _turns(0, 3))
        tier.append("a", _turns(5, 7))
        tier.append("a", _turns(3, 5))
        tier.append("a", _turns(6, 9))

        assert _numbers(tier.recent("a", 99)) == [5, 6, 7, 8]
        tier.append("a", _turns(4, 9))
        assert _numbers(tier.recent("a", 99)) == [4, 5, 6, 7, 8]

    def test_is_not_reached_through_what_it_gives(self) -> None:
        """Changing what was given out, at any depth, does not change what is held."""
        tier = self.make(1 << 20, 10, 60, [0.0])
        nested = Turn(0, {"role": "user", "content": [{"type": "text", "text": "a"}]}, 0.0, None, {"k": [1]}, [0.5])
        tier.append("nested", [nested])
        tier.append("flat", _turns(0, 1))
        got = tier.recent("nested", 1)[0]
        got.message["content"][0]["text"] = "changed"
        got.metadata["k"].append(2)
        tier.recent("flat", 1)[0].message["content"] = "changed"

        assert tier.recent("nested", 1)[0].message["content"] == [{"type": "text", "text": "a"}]
        assert tier.recent("nested", 1)[0].metadata == {"k": [1]}
        assert tier.recent("flat", 1) == _turns(0, 1)

    def test_trims_sessions(self) -> None:
        """Of too many turns the oldest leave, each told once, and stay readable until they are dropped."""
        tier = self.make(1 << 20, 4, 60, [0.0])
        tier.append("a", _turns(0, 6))
        leaving = tier.trim("a")
        again = tier.trim("a")

        assert leaving is not None
        assert (leaving.key, leaving.reason, leaving.whole) == ("a", "size", False)
        assert leaving.turns == _turns(0, 2)
        assert again is None
        assert _numbers(tier.recent("a", 99)) == [0, 1, 2, 3, 4, 5]
        tier.drop(leaving)
        assert _numbers(tier.recent("a", 99)) == [2, 3, 4, 5]

    def test_lets_the_least_recently_used_leave(self) -> None:
        """Over its bytes, the session that was not used for longest leaves first, and dropping frees its bytes."""
        tier = self.make(1 << 30, 100, 60, [0.0])
        tier.append("a", _turns(0, 10))
        one = tier.size()
        tier = self.make(2 * one + one // 2, 100, 60, [0.0])
        for key in ("a", "b", "c"):
            tier.append(key, _turns(0, 10))
            tier.recent("a", 1)
        leaving = tier.leaving(0.0)

        assert [(item.key, item.reason, item.whole, len(item.turns)) for item in leaving] == [("b", "size", True, 10)]
        tier.drop(leaving[0])
        assert sorted(tier.keys()) == ["a", "c"]
        assert tier.size() == 2 * one

    def test_lets_the_unused_leave(self) -> None:
        """A session that nobody used for the time to live leaves; using it starts the time anew."""
        clock = [0.0]
        tier = self.make(1 << 20, 10, 60, clock)
        tier.append("old", _turns(0, 1))
        tier.append("used", _turns(0, 1))
        clock[0] = 50.0
        tier.recent("used", 1)
        clock[0] = 70.0
        leaving = tier.leaving(clock[0])

        assert [(item.key, item.reason) for item in leaving] == [("old", "ttl")]

    def test_turns_that_come_meanwhile_stay(self) -> None:
        """Dropping removes what was told, not what came after."""
        tier = self.make(1 << 20, 10, 60, [0.0])
        tier.append("a", _turns(0, 3))
        leaving = tier.take("a", "forget")
        tier.append("a", _turns(3, 5))

        assert leaving is not None
        assert (leaving.reason, leaving.whole) == ("forget", True)
        tier.drop(leaving)
        assert _numbers(tier.recent("a", 99)) == [3, 4]

    def test_many_threads(self) -> None:
        """Each turn is handed out as leaving at most once, whatever threads do at the same time."""
        tier = self.make(1 << 20, 5, 60, [0.0])
        told: list[int] = []
        lock = threading.Lock()

        def work(start: int) -> None:
            for number in range(start, 400, 4):
                tier.append("a", _turns(number, number + 1))
                leaving = tier.trim("a")
                if leaving:
                    with lock:
                        told.extend(_numbers(leaving.turns))
                    tier.drop(leaving)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))

        held = _numbers(tier.recent("a", 999))
        assert held == list(range(held[0], held[-1] + 1))
        assert len(held) <= 5 + 1  # one may have come after the last trim
        assert len(told) == len(set(told))
