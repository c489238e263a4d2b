"""The four hooks: each is documented with its signature, and each does what its specification says."""

from __future__ import annotations

import copy
import inspect
import logging
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import (
    Exchange,
    Krunch,
    Reply,
    RequestRefused,
    SearchHit,
    SearchQuery,
    Settings,
    Turn,
    hookimpl,
    hookspecs,
)
from krunch_plugins.plugins import Plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from krunch_plugins.turns import EvictReason

PAGE = Path(__file__).parent.parent / "docs" / "hooks.md"

HOOKS: dict[str, Callable[..., Any]] = {
    name: function for name, function in vars(hookspecs).items() if hasattr(function, f"{hookspecs.NAME}_spec")
}


def signature(name: str) -> str:
    """A hook as its section's title gives it."""
    found = inspect.signature(HOOKS[name])
    arguments = ", ".join(f"{parameter.name}: {parameter.annotation}" for parameter in found.parameters.values())
    return f"{name}({arguments}) -> {found.return_annotation}"


def test_there_are_exactly_these_hooks() -> None:
    """The hooks and their arguments are what plugins were written against."""
    assert {name: list(inspect.signature(hook).parameters) for name, hook in HOOKS.items()} == {
        "pre_request": ["exchange"],
        "post_response": ["exchange", "reply"],
        "on_evict": ["session", "turns", "reason", "tenant"],
        "on_search": ["query"],
    }


def test_each_hook_has_a_section_with_its_exact_signature() -> None:
    """docs/hooks.md has one section per hook, titled with its signature as the code has it."""
    titles = re.findall(r"^## `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert titles == [signature(name) for name in HOOKS]


@pytest.mark.parametrize("name", HOOKS)
def test_each_hook_has_a_test(name: str) -> None:
    """For each hook there is a test of its name here."""
    assert callable(globals().get(f"test_hook_{name}"))


@pytest.mark.parametrize("name", HOOKS)
def test_each_specification_answers_every_question(name: str) -> None:
    """Each docstring says when, what, how results combine, what a failure does, in which order, on which thread."""
    lines = (HOOKS[name].__doc__ or "").splitlines()

    words = [line.strip().split(":")[0] for line in lines if re.match(r" {4}[A-Z][a-z ]+:", line)]
    assert words == ["Called", "May change", "Combines", "Raises", "Order", "Thread"]


@pytest.mark.parametrize("kind", [Exchange, Reply, Turn, SearchQuery, SearchHit])
def test_what_hooks_are_handed_is_slotted_and_documented(kind: type) -> None:
    """Each field of what a hook is handed is described, and a misspelt attribute is an error."""
    assert is_dataclass(kind)
    source = inspect.getsource(kind)

    for field in fields(kind):
        in_docstring = f"        {field.name}: " in (kind.__doc__ or "")
        below = re.search(rf'^    {field.name}: .*\n    """', source, re.MULTILINE)
        assert in_docstring or below, field.name
    assert not hasattr(kind(*([None] * sum(map(_is_required, fields(kind))))), "__dict__")


def _is_required(field: Any) -> bool:
    return field.default is field.default_factory


def test_hook_pre_request() -> None:
    """A plugin changes messages in place, replaces the list, leaves notes; the next one sees it."""

    class InPlace:
        @hookimpl(tryfirst=True)
        def pre_request(self, exchange: Exchange) -> str:
            exchange.messages[0]["content"] += " in place"
            exchange.metadata["in-place"] = exchange.model, exchange.session, exchange.tenant
            return "ignored"

    class Replaces:
        @hookimpl
        def pre_request(self, exchange: Exchange) -> None:
            exchange.messages = [*exchange.messages, {"role": "user", "content": str(exchange.metadata["in-place"])}]

    with Krunch(Settings(), plugins=[InPlace(), Replaces()]) as krunch:
        exchange = krunch.prepare([{"role": "user", "content": "Hello"}], model="m", session="s", tenant="t")

    assert [message["content"] for message in exchange.messages] == ["Hello in place", "('m', 's', 't')"]
    assert exchange.report.problems == []


def test_hook_post_response() -> None:
    """A plugin changes the reply or puts another in its place; the caller gets what the last one left."""

    class InPlace:
        @hookimpl(tryfirst=True)
        def post_response(self, reply: Reply) -> None:
            reply.message["content"] += " in place"

    class Replaces:
        @hookimpl
        def post_response(self, exchange: Exchange, reply: Reply) -> None:
            reply.message = {**reply.message, "name": exchange.session}

    written = {"role": "assistant", "content": "Hi"}
    with Krunch(Settings(), plugins=[InPlace(), Replaces()]) as krunch:
        exchange = krunch.prepare([{"role": "user", "content": "Hello"}], model="m", session="s")

        assert exchange.finish(written) == {"role": "assistant", "content": "Hi in place", "name": "s"}
    assert written == {"role": "assistant", "content": "Hi"}


TEXT = "text of a turn"


class Raises:
    """Fails at whatever the store and the search ask."""

    name = "raises"

    @hookimpl
    def on_evict(self) -> None:
        """Fail."""
        raise RuntimeError(TEXT)

    @hookimpl
    def on_search(self) -> None:
        """Fail in the way that stops a call elsewhere."""
        raise RequestRefused(TEXT)


def turn(number: int) -> Turn:
    """A stored turn."""
    return Turn(number, {"role": "user", "content": f"turn {number}"}, timestamp=1.0)


@pytest.mark.parametrize("reason", ["size", "ttl", "forget", "close"])
def test_hook_on_evict(reason: EvictReason, caplog: pytest.LogCaptureFixture) -> None:
    """All plugins are told, ours last, with any subset of arguments; failures are counted and logged without text."""
    told: list[Any] = []

    class Part:
        @hookimpl
        def on_evict(self, session: str, turns: Sequence[Turn], reason: EvictReason, tenant: str | None) -> None:
            told.append(("part", session, list(turns), reason, tenant))

    class Outside:
        @hookimpl(trylast=True)
        def on_evict(self, tenant: str | None, turns: Sequence[Turn]) -> str:
            told.append(("outside", tenant, list(turns)))
            return "ignored"

    plugins = Plugins({"part": Part()})
    plugins.register(Outside())
    plugins.register(Raises())
    turns = [turn(3), turn(4)]
    with caplog.at_level(logging.DEBUG, "krunch"):
        failed = plugins.on_evict("s", turns, reason, "t")

    assert told == [("outside", "t", turns), ("part", "s", turns, reason, "t")]
    assert failed == 1
    assert "plugin 'raises' raised RuntimeError in on_evict; the eviction goes on" in caplog.text
    assert TEXT not in caplog.text


def test_hook_on_search(caplog: pytest.LogCaptureFixture) -> None:
    """Each plugin answers for itself, at most k hits; failures and answers that are no hits leave the others alone."""
    hits = [SearchHit(turn(number), "s", score=1.0 / (number + 1)) for number in range(5)]

    class Lazy:
        name = "lazy"

        @hookimpl
        def on_search(self, query: SearchQuery) -> Any:
            return (hit for hit in hits if query.text)

    class Nothing:
        name = "nothing"

        @hookimpl
        def on_search(self) -> None:
            return None

    class FailsLate:
        name = "fails late"

        @hookimpl
        def on_search(self) -> Any:
            return (1 // 0 for _ in range(1))

    class NoHits:
        name = "no hits"

        @hookimpl
        def on_search(self) -> Any:
            return ["turn 3"]

    class Ambiguous:
        name = "ambiguous"

        class _Answer(list[SearchHit]):
            def __bool__(self) -> bool:
                raise ValueError("neither true nor false, as an array")

        @hookimpl
        def on_search(self) -> Any:
            return self._Answer(hits[:1])

    plugins = Plugins({})
    for plugin in (Lazy(), Nothing(), FailsLate(), NoHits(), Ambiguous(), Raises()):
        plugins.register(plugin)
    query = SearchQuery("words", tenant="t", k=2)
    with caplog.at_level(logging.DEBUG, "krunch"):
        answers = plugins.on_search(query)

    assert answers == {"lazy": hits[:2], "nothing": [], "ambiguous": hits[:1]}
    assert query == copy.copy(SearchQuery("words", tenant="t", k=2))
    for name in ("fails late", "no hits", "raises"):
        assert f"plugin '{name}' raised" in caplog.text
    assert TEXT not in caplog.text


def test_a_hook_may_have_another_name() -> None:
    """A function with `specname` is that hook, in the report too."""

    class Renamed:
        name = "renamed"

        @hookimpl(specname="pre_request")
        def check(self) -> None:
            raise ValueError

    with Krunch(Settings(mode="off"), plugins=[Renamed()]) as krunch:
        exchange = krunch.prepare([], model="m")

    assert [(problem.plugin, problem.hook) for problem in exchange.report.problems] == [("renamed", "pre_request")]
