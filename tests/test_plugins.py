"""The plugin manager: what is registered, what is refused, what is kept out."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import Exchange, Krunch, Reply, Settings, hookimpl
from krunch_plugins.errors import PluginError
from krunch_plugins.plugins import PluginInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUILT_IN = (
    PluginInfo("compression", ("post_response", "pre_request"), builtin=True, distribution=None),
    PluginInfo("recent", ("post_response",), builtin=True, distribution=None),
)


class Marker:
    """Notes in the metadata that it was there."""

    def __init__(self, name: str = "marker") -> None:
        self.name = name

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """Leave a note."""
        exchange.metadata.setdefault("order", []).append(self.name)


@pytest.fixture
def krunch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Krunch]:
    """A Krunch with nothing kept out."""
    monkeypatch.delenv("KRUNCH_DISABLE_PLUGINS", raising=False)
    with Krunch(Settings(mode="off")) as made:
        yield made


def order(krunch: Krunch) -> list[str]:
    """The plugins that a request passes, in order."""
    exchange = krunch.prepare([{"role": "user", "content": "x"}], model="gpt-4o")
    found: list[str] = exchange.metadata.get("order", [])
    return found


def test_plugins_come_and_go(krunch: Krunch) -> None:
    """A plugin works from its registration on, is listed, and works no more when it is taken out."""
    plugin = Marker()
    name = krunch.register(plugin)
    listed = krunch.plugins()
    while_there = order(krunch)
    krunch.unregister(plugin)

    assert name == "marker"
    assert listed == (*BUILT_IN, PluginInfo("marker", ("pre_request",), builtin=False, distribution=None))
    assert (while_there, order(krunch)) == (["marker"], [])
    assert krunch.plugins() == BUILT_IN


def test_messages_too_deep_to_copy_pass_by_plugins_all_the_same(krunch: Krunch) -> None:
    """A request fails open: the list and its messages are copies, what lies too deep in them is shared."""
    krunch.register(Marker())
    deep: Any = "x"
    for _ in range(5_000):
        deep = {"a": deep}
    given = [{"role": "user", "content": "hi", "extra": deep}]
    exchange = krunch.prepare(given, model="gpt-4o")
    exchange.messages[0]["content"] = "changed"

    assert given[0]["content"] == "hi"
    assert exchange.finish({"role": "assistant", "content": "ho", "extra": deep})["content"] == "ho"


def test_the_last_registered_comes_first(krunch: Krunch) -> None:
    """Outside plugins run in pluggy's order: last registered first, within `tryfirst` and `trylast`."""

    class First(Marker):
        @hookimpl(tryfirst=True)
        def pre_request(self, exchange: Exchange) -> None:
            super().pre_request(exchange)

    class Last(Marker):
        @hookimpl(trylast=True)
        def pre_request(self, exchange: Exchange) -> None:
            super().pre_request(exchange)

    for plugin in (First("first"), Marker("a"), Marker("b"), Last("last")):
        krunch.register(plugin)

    assert order(krunch) == ["first", "b", "a", "last"]


def test_a_class_a_module_and_a_given_name_will_do(krunch: Krunch) -> None:
    """A class is called; a module's functions are its hooks; a name given at registration goes over the plugin's."""
    module = ModuleType("some_module")

    @hookimpl
    def pre_request(exchange: Exchange) -> None:
        exchange.metadata.setdefault("order", []).append("module")

    module.pre_request = pre_request  # type: ignore[attr-defined]  # what a module's source would do

    assert krunch.register(Marker, "by-class") == "by-class"
    assert krunch.register(module) == "some_module"
    assert order(krunch) == ["module", "marker"]
    krunch.unregister("by-class")
    assert order(krunch) == ["module"]


class Misspelt:
    """Has a hook that does not exist."""

    @hookimpl
    def pre_requests(self, exchange: Exchange) -> None:
        """Never called."""


class UnknownArgument:
    """Asks for something that the hook does not have."""

    @hookimpl
    def pre_request(self, exchange: Exchange, request: Any) -> None:
        """Never called."""


class Defaulted:
    """Would always be handed the default: pluggy fills only what has none."""

    @hookimpl
    def pre_request(self, exchange: Exchange | None = None) -> None:
        """Never called."""


class KeywordOnly:
    """pluggy never fills keyword-only arguments."""

    @hookimpl
    def pre_request(self, *, exchange: Exchange) -> None:
        """Never called."""


class TakesAnything:
    """Would be handed nothing."""

    @hookimpl
    def pre_request(self, **everything: Any) -> None:
        """Never called."""


class Coroutine:
    """Nobody would await it."""

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        """Never called."""


class Generator:
    """Its body would never run."""

    @hookimpl
    def pre_request(self, exchange: Exchange) -> Iterator[None]:
        """Never called."""
        yield


class Wrapper:
    """Cannot be isolated from what it wraps."""

    @hookimpl(wrapper=True)
    def pre_request(self, exchange: Exchange) -> Iterator[None]:
        """Never called."""
        yield


class Unmarked:
    """Forgot the marker."""

    def pre_request(self, exchange: Exchange) -> None:
        """Never called."""


class NeedsArguments(Marker):
    """Cannot be made by Krunch."""

    def __init__(self, name: str, more: int) -> None:
        super().__init__(f"{name}{more}")


@pytest.mark.parametrize(
    ("plugin", "why"),
    [
        (Misspelt, "unknown hook 'pre_requests'"),
        (UnknownArgument, "request"),
        (Defaulted, "which nothing would fill"),
        (KeywordOnly, "which nothing would fill"),
        (TakesAnything, "which nothing would fill"),
        (Coroutine, "is a coroutine"),
        (Generator, "is a generator"),
        (Wrapper, "is a hook wrapper"),
        (Unmarked, "no function marked @hookimpl"),
        (NeedsArguments, "register an instance"),
    ],
)
def test_what_could_not_work_is_refused_at_registration(krunch: Krunch, plugin: type, why: str) -> None:
    """A plugin that would never be called as its author means it raises, names itself, and leaves no trace."""
    with pytest.raises(PluginError) as caught:
        krunch.register(plugin)

    assert caught.value.plugin == plugin.__name__
    assert why in caught.value.why
    assert krunch.plugins() == BUILT_IN
    krunch.register(Marker(plugin.__name__))
    assert order(krunch) == [plugin.__name__]


def test_a_refusal_says_what_hooks_there_are(krunch: Krunch) -> None:
    """The error of a misspelt hook lists the four hooks with their arguments."""
    with pytest.raises(PluginError, match=r"pre_request\(exchange\), post_response\(exchange, reply\), on_evict\("):
        krunch.register(Misspelt())


def test_a_default_beside_the_hooks_arguments_is_fine(krunch: Krunch) -> None:
    """A parameter with a default that is no argument of the hook keeps its default."""

    class Bound:
        @hookimpl
        def pre_request(self, exchange: Exchange, note: str = "bound") -> None:
            exchange.metadata["order"] = [note]

    krunch.register(Bound())

    assert order(krunch) == ["bound"]


def test_a_second_registration_is_refused_and_the_first_stays(krunch: Krunch) -> None:
    """Neither a name nor an object can be registered twice; the one that was there keeps working."""
    plugin = Marker()
    krunch.register(plugin)

    for again, name in ((plugin, None), (plugin, "other"), (Marker(), None), (Marker("compression"), None)):
        with pytest.raises(PluginError):
            krunch.register(again, name)

    assert order(krunch) == ["marker"]
    assert [info.name for info in krunch.plugins()] == ["compression", "recent", "marker"]


def test_krunchs_own_parts_and_strangers_cannot_be_taken_out(krunch: Krunch) -> None:
    """Unregistering a built-in part, or what is not there, raises and names it."""
    with pytest.raises(PluginError, match="own parts"):
        krunch.unregister("compression")
    with pytest.raises(PluginError, match="'nobody': is not registered"):
        krunch.unregister("nobody")
    with pytest.raises(PluginError, match="'marker': is not registered"):
        krunch.unregister(Marker())


def test_a_refused_plugin_stops_the_making_of_a_krunch() -> None:
    """A plugin handed to `Krunch` that cannot be registered raises there and then."""
    with pytest.raises(PluginError, match="Misspelt"):
        Krunch(Settings(), plugins=[Marker(), Misspelt()])


def install(site: Path, *, name: str, entry: str, module: str, source: str) -> None:
    """Lay out an installed distribution with one entry point, as pip does."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[krunch_plugins]\n{entry} = {module}\n", encoding="utf-8")
    (site / f"{module}.py").write_text(source, encoding="utf-8")


GOOD = """
from krunch_plugins import hookimpl

@hookimpl
def pre_request(exchange):
    exchange.metadata["order"] = ["installed"]
"""
BROKEN = {
    "raises": "raise RuntimeError('no such luck')",
    "nothing": "",
    "misspelt": GOOD.replace("pre_request", "pre_requests"),
    "missing": "raise ImportError('missing dependency')",
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for distributions, on the path."""
    before = set(sys.modules)
    monkeypatch.delenv("KRUNCH_DISABLE_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_installed_plugin_is_there(site: Path) -> None:
    """What a distribution offers is registered under its entry point's name, and listed with the distribution's."""
    install(site, name="krunch-good", entry="good", module="good_plugin", source=GOOD)

    with Krunch(Settings(mode="off")) as krunch:
        assert krunch.plugins()[2] == PluginInfo("good", ("pre_request",), builtin=False, distribution="krunch-good")
        assert order(krunch) == ["installed"]


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_entry_point_is_named_and_skipped(site: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """An entry point that cannot be loaded or registered is logged with its distribution; the others are loaded."""
    install(site, name="broken-thing", entry="a-broken-one", module=f"broken_{kind}", source=BROKEN[kind])
    install(site, name="krunch-good", entry="good", module="good_plugin", source=GOOD)

    with caplog.at_level(logging.WARNING, "krunch"), Krunch(Settings(mode="off")) as krunch:
        names = [info.name for info in krunch.plugins()]

    (record,) = caplog.records
    assert "'broken-thing'" in record.getMessage()
    assert "'a-broken-one'" in record.getMessage()
    assert names == ["compression", "recent", "good"]


@pytest.mark.parametrize("disabled", ["all", "x, good ,marker", "all,x"])
def test_the_kill_switch_keeps_outside_plugins_out(site: Path, monkeypatch: pytest.MonkeyPatch, disabled: str) -> None:
    """Named or all, plugins from entry points are not even imported, and registered ones stay out; ours stay in."""
    install(site, name="krunch-good", entry="good", module="good_plugin", source="raise SystemExit")
    monkeypatch.setenv("KRUNCH_DISABLE_PLUGINS", disabled)

    with Krunch(Settings(mode="off"), plugins=[Marker()]) as krunch:
        assert krunch.register(Marker) is None
        assert krunch.plugins() == BUILT_IN
        assert "good_plugin" not in sys.modules


def test_the_kill_switch_spares_what_it_does_not_name(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that the variable does not name are registered."""
    install(site, name="krunch-good", entry="good", module="good_plugin", source=GOOD)
    monkeypatch.setenv("KRUNCH_DISABLE_PLUGINS", "marker,compression")

    with Krunch(Settings(mode="off"), plugins=[Marker()]) as krunch:
        assert [info.name for info in krunch.plugins()] == ["compression", "recent", "good"]


def test_plugins_of_one_krunch_are_not_another_ones(krunch: Krunch) -> None:
    """Each Krunch has its own plugins."""
    krunch.register(Marker())

    with Krunch(Settings(mode="off")) as other:
        assert order(other) == []


def test_the_compressor_reads_last_and_expands_first(krunch: Krunch) -> None:
    """Whatever their order, outside plugins see requests before compression and replies after expansion."""
    seen: dict[str, bool] = {}

    class Watcher:
        @hookimpl(trylast=True)
        def pre_request(self, exchange: Exchange) -> None:
            seen["compressed"] = bool(exchange.report.messages)

        @hookimpl(tryfirst=True)
        def post_response(self, reply: Reply) -> None:
            seen["expanded"] = reply.expanded

    krunch.register(Watcher())
    exchange = krunch.prepare([{"role": "user", "content": "x"}], model="gpt-4o")
    exchange.finish({"role": "assistant", "content": "y"})

    assert seen == {"compressed": False, "expanded": True}
