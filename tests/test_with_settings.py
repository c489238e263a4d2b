"""One Krunch with other settings for some requests: everything else is the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from krunch_plugins import Krunch, Settings, hookimpl
from krunch_plugins.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from krunch_plugins import Exchange, Turn

STORY = "; ".join(f"the launch of project Bluebird {n} was moved to the harbour of Trieste" for n in range(12))
ASKED: list[dict[str, Any]] = [{"role": "user", "content": STORY}]


class Ears:
    """A plugin that notes what it hears."""

    name = "ears"

    def __init__(self) -> None:
        self.evicted: list[tuple[str, int]] = []
        self.asked = 0

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        self.asked += exchange.session is not None

    @hookimpl
    def on_evict(self, session: str, turns: Sequence[Turn]) -> None:
        self.evicted += [(session, turn.number) for turn in turns]


class Letters:
    """An embedder that counts what it embeds."""

    name, dimension = "letters-26", 26

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        self.texts += texts
        counts = np.array([[text.lower().count(chr(97 + place)) for place in range(26)] for text in texts], np.float32)
        lengths = np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1)
        return np.asarray(counts / lengths, np.float32)


def _ask(krunch: Krunch, session: str) -> Exchange:
    exchange = krunch.prepare(ASKED, model="gpt-4o", session=session)
    exchange.finish({"role": "assistant", "content": f"Noted for {session}."})
    return exchange


@pytest.mark.parametrize("stored", [True, False])
def test_each_eviction_is_heard_once(tmp_path: Path, *, stored: bool) -> None:
    """However many settings serve requests, a plugin hears of each turn that leaves memory once."""
    ears = Ears()
    settings = Settings(home=tmp_path if stored else None)
    with Krunch(settings, plugins=[ears]) as krunch:
        others = [krunch.with_settings(Settings(mode="off")), krunch.with_settings(Settings(min_tokens=9))]
        for number, each in enumerate([krunch, *others]):
            _ask(each, f"s{number}")
        assert ears.asked == 3
        for other in others:
            other.close()
        assert ears.evicted == []

    assert sorted(ears.evicted) == [(f"s{number}", turn) for number in range(3) for turn in range(2)]


def test_what_is_stored_is_recorded_embedded_and_found_once(tmp_path: Path) -> None:
    """One store and one index: what was said under other settings is found, and no text is embedded twice."""
    letters = Letters()
    with Krunch(Settings(home=tmp_path), embedder=letters) as krunch:
        other = krunch.with_settings(Settings(mode="off"))
        sent = [_ask(krunch, "s").messages, _ask(other, "s").messages]
        assert krunch.flush(10)
        found = [each.search("Bluebird", session="s") for each in (krunch, other)]

        assert sent[0] != ASKED == sent[1]
        assert [turn.message["content"] for turn in other.recent("s")] == [STORY, "Noted for s."]
        assert [hit.turn.number for hit in found[0]] == [hit.turn.number for hit in found[1]]
        assert found[0][0].turn.message["content"] == STORY
        assert letters.texts.count(STORY) == 1


def test_plugins_are_shared_whichever_they_are_registered_with() -> None:
    """A plugin that comes or goes does so for all settings at once."""
    ears = Ears()
    with Krunch(Settings()) as krunch:
        other = krunch.with_settings(Settings(mode="off"))
        other.register(ears)
        for each in (krunch, other):
            _ask(each, "s")
        assert ears.asked == 2
        assert [plugin.name for plugin in other.plugins() if not plugin.builtin] == ["ears"]
        with pytest.raises(PluginError):
            krunch.register(ears)
        krunch.unregister("ears")
        for each in (krunch, other):
            _ask(each, "s")

        assert ears.asked == 2
        assert other.register(ears) == "ears"  # nothing of the failed registration stayed


def test_name_that_a_part_of_other_settings_has_is_refused_everywhere(tmp_path: Path) -> None:
    """A plugin that one of them cannot have none of them has."""
    ears = Ears()
    with Krunch(Settings(home=tmp_path)) as krunch:
        other = krunch.with_settings(Settings(context_window=1000))
        with pytest.raises(PluginError):
            krunch.register(ears, "recall")

        assert all(plugin.builtin for each in (krunch, other) for plugin in each.plugins())
        assert "recall" in {plugin.name for plugin in other.plugins()}


def test_closing_one_leaves_the_first_at_work(tmp_path: Path) -> None:
    """The store, the search and the plugins stay where another one needs them."""
    with Krunch(Settings(home=tmp_path)) as krunch:
        with krunch.with_settings(Settings(mode="off")) as other:
            _ask(other, "s")
        _ask(krunch, "s")

        assert len(krunch.recent("s")) == 2
        assert krunch.search("Bluebird")
