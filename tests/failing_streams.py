"""Replies whose expansion fails on the way, for the tests of everything that streams them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from krunch_plugins import Krunch, Settings, hookimpl
from krunch_plugins.compression.windows import Window

if TYPE_CHECKING:
    import pytest

    from krunch_plugins import Exchange, Reply

STORY = "; ".join(f"the launch of project Bluebird {n} was moved to the harbour of Trieste" for n in range(12))
FAILING = [1, 2, 3, 4]
"""Which of the pieces cannot be expanded, from 1."""


class _Failing:
    """A stream, or one of its texts, of which one piece cannot be expanded."""

    def __init__(self, inner: Any, piece: int) -> None:
        self._inner, self._left = inner, piece

    def open(self, **how: Any) -> _Failing:
        return _Failing(self._inner.open(**how), self._left)

    def feed(self, piece: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise ValueError("a fault")
        return self._inner.feed(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Faulty(Krunch):
    """A Krunch whose streams fail at one piece, and which keeps what its plugins are shown of replies.

    Args:
        piece: which, from 1.
    """

    def __init__(self, piece: int) -> None:
        super().__init__(Settings(min_tokens=0))
        self.piece, self.shown = piece, []
        self.register(self)

    shown: list[Reply]

    @hookimpl
    def post_response(self, exchange: Exchange, reply: Reply) -> None:
        self.shown.append(reply)

    def stream(self, exchange: Exchange) -> Any:
        return _Failing(super().stream(exchange), self.piece)

    def texts(self, exchange: Exchange) -> Any:
        return _Failing(super().texts(exchange), self.piece)

    def asked(self) -> Exchange:
        """A request that was compressed."""
        return self.prepare([{"role": "user", "content": STORY}], model="gpt-4o")


class FaultyWindows(Faulty):
    """The same, with the fault inside of Krunch's core.

    Args:
        piece: which, from 1.
        monkeypatch: undoes it.
    """

    def __init__(self, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(0)
        feed, left = Window.feed, piece

        def failing(window: Window, text: str) -> str:
            nonlocal left
            left -= 1
            if left == 0:
                raise ValueError("a fault")
            return feed(window, text)

        monkeypatch.setattr(Window, "feed", failing)


def faulty(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """A Krunch with a fault in what an adapter calls ("expander") or inside of the core ("window")."""
    return Faulty(piece) if kind == "expander" else FaultyWindows(piece, monkeypatch)


def pieces_of(exchange: Exchange) -> list[str]:
    """What the model says, in pieces that cut symbols."""
    symbol = next(iter(exchange.symbols))
    return [f"It says {symbol} and {symbol[0]}", f"{symbol[1:]}, ", f"then {symbol}", ", and no more."]


def expected(exchange: Exchange, piece: int) -> str:
    """What the caller gets: expanded before the failing piece, as it came from there on, nothing lost or moved."""
    symbol, meaning = next(iter(exchange.symbols.items()))
    pieces = pieces_of(exchange)
    return "".join(pieces[: piece - 1]).replace(symbol, meaning) + "".join(pieces[piece - 1 :])
