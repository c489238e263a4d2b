"""What the window must not do: lose what nobody has, cross tenants, undo a plugin's work, fail a call."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from krunch_plugins import ContextReport, ConversationStore, Exchange, Krunch, Settings, hookimpl, is_recalled, restore
from krunch_plugins.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from krunch_plugins import SearchHit, SearchQuery

Message = dict[str, Any]

SYSTEM = {"role": "system", "content": "You help with paperwork."}
QUESTION = {"role": "user", "content": "Which number has my ferry ticket?"}


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    """The assistant's."""
    return {"role": "assistant", "content": text}


def talk(rounds: int = 16, fact: str = "My ferry ticket has the number QX-7781.") -> list[Message]:
    """A conversation about other things, with a fact near its beginning."""
    out = [SYSTEM, user("Hello."), bot("Go ahead."), user(fact), bot("Noted.")]
    for number in range(rounds):
        words = " ".join(f"item{number}x{index}" for index in range(12))
        out += [user(f"Sort list {number} please: {words}"), bot(f"List {number} sorted: {words}")]
    return out


def small(first: int) -> list[Message]:
    """Talk about other things, of other words for each number that it begins with."""
    texts = [" ".join(f"thing{number}x{index}" for index in range(12)) for number in range(first, first + 8)]
    return [message for text in texts for message in (user(f"Turn it: {text}"), bot(f"Turned: {text}"))]


def opened(home: Path, **options: Any) -> Krunch:
    """A Krunch with a store and a window of 600 tokens."""
    return Krunch(Settings(home=str(home), context_window=600, **options))


def ask(krunch: Krunch, session: str | None = "s", tenant: str | None = None, **facts: Any) -> Exchange:
    """The question about the fact, at the end of a long conversation."""
    messages = [*talk(), QUESTION]
    return krunch.prepare(messages, model="gpt-4o", session=session, tenant=tenant, **facts)


def report(exchange: Exchange) -> ContextReport:
    """The part of the report that is about the window."""
    assert exchange.report.context is not None
    return exchange.report.context


def test_nothing_leaves_a_request_without_a_session(tmp_path: Path) -> None:
    """What left could not be found again, so the request goes out whole, nothing is stored, and the report says why."""
    with opened(tmp_path) as krunch:
        exchange = ask(krunch, session=None)
        assert krunch.store is not None

        assert restore(exchange.messages) == [*talk(), QUESTION]
        assert (report(exchange).reason, report(exchange).recall, report(exchange).left) == ("no_session", "", 0)
        assert report(exchange).over_window
        assert krunch.store.sessions() == []


def test_nothing_leaves_where_there_is_no_store() -> None:
    """Without a home the turns in memory are not enough to find things again."""
    with Krunch(Settings(context_window=600)) as krunch:
        exchange = ask(krunch)

    assert restore(exchange.messages) == [*talk(), QUESTION]
    assert report(exchange).reason == "no_store"


def test_observe_says_what_would_leave(tmp_path: Path) -> None:
    """In "observe" the request is untouched, nothing is recorded before its reply, and the figures are there."""
    with opened(tmp_path, mode="observe") as krunch:
        exchange = ask(krunch)
        assert krunch.store is not None

        found = report(exchange)
        assert exchange.messages == [*talk(), QUESTION]
        assert (found.reason, found.recall) == ("would_leave", "")
        assert found.left > 10
        assert found.tokens_after == found.tokens_before - found.left_tokens <= 600
        assert krunch.store.sessions() == []


def test_what_stays_may_be_too_much(tmp_path: Path) -> None:
    """Instructions longer than the window stay; so does the last message, however long; the report says it is over."""
    rules = {"role": "system", "content": "Never say the password. " * 200}
    with opened(tmp_path) as krunch:
        exchange = krunch.prepare([rules, *talk()[1:], QUESTION], model="gpt-4o", session="s")
        single = krunch.prepare([user("word " * 900)], model="gpt-4o", session="t")

    assert restore(exchange.messages)[0] == rules
    assert restore(exchange.messages)[-1] == QUESTION
    assert report(exchange).left > 10
    assert report(exchange).over_window
    assert report(single).reason == "nothing_can_leave"


def test_pinned_messages_stay(tmp_path: Path) -> None:
    """As many first messages as are pinned stay, with the results of calls among them, unless they take too much."""
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    opening = [SYSTEM, user("Hello."), {"role": "assistant", "content": None, "tool_calls": [call]}]
    opening += [{"role": "tool", "tool_call_id": "a", "content": "found"}]
    with opened(tmp_path, context_pinned=2) as krunch:
        pinned = krunch.prepare([*opening, *talk()[2:], QUESTION], model="gpt-4o", session="s")
    with opened(tmp_path / "large") as krunch:
        pasted = user("word " * 400)
        large = krunch.prepare([SYSTEM, pasted, *talk()[2:], QUESTION], model="gpt-4o", session="s")
    with opened(tmp_path / "none", context_pinned=0) as krunch:
        free = krunch.prepare([*opening, *talk()[2:], QUESTION], model="gpt-4o", session="s")

    assert restore(pinned.messages)[:4] == opening
    assert restore(large.messages)[0] == SYSTEM
    assert report(large).tokens_after <= 600
    assert restore(free.messages)[0] == SYSTEM
    assert user("Hello.") not in restore(free.messages)


def test_the_share_for_recalled_turns_can_be_nothing(tmp_path: Path) -> None:
    """With `context_recall=0` messages leave and none comes back."""
    with opened(tmp_path, context_recall=0.0) as krunch:
        exchange = ask(krunch)

    assert (report(exchange).reason, report(exchange).recall, report(exchange).inserts) == ("left", "off", 0)


class BrokenSearch:
    """Somebody's search plugin that answers with something that is no hit, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[SearchQuery] = []

    @hookimpl
    def on_search(self, query: SearchQuery) -> Sequence[SearchHit]:
        self.asked.append(query)
        raise RuntimeError


def test_a_failing_search_plugin_costs_its_answer_only(tmp_path: Path) -> None:
    """The built-in voices answer all the same."""
    broken = BrokenSearch()
    with opened(tmp_path) as krunch:
        krunch.register(broken)
        exchange = ask(krunch)

    assert broken.asked
    assert report(exchange).recall == "recalled"


def test_a_search_that_fails_leaves_the_request_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the store cannot be read to recall something, what left has left, nothing comes back, and that is told."""
    with opened(tmp_path) as krunch:
        ask(krunch).finish(bot("QX-7781."))
        assert krunch.store is not None
        monkeypatch.setattr(krunch.store, "turns", _raise)
        exchange = krunch.prepare(
            [*talk(), QUESTION, bot("QX-7781."), user("Really the ferry ticket?")], model="gpt-4o", session="s"
        )

    assert (report(exchange).reason, report(exchange).recall) == ("left", "search_failed")
    assert exchange.report.problems == []


def test_a_store_that_fails_leaves_the_request_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is not certain that the store has what would leave, nothing leaves."""
    with opened(tmp_path) as krunch:
        assert krunch.store is not None
        monkeypatch.setattr(krunch.store, "append_if", _raise)
        unrecorded = ask(krunch)
        monkeypatch.undo()
        monkeypatch.setattr(krunch.store, "get_state", _raise)
        unread = ask(krunch)

    for exchange in (unrecorded, unread):
        assert restore(exchange.messages) == [*talk(), QUESTION]
        assert report(exchange).reason == "store_failed"
        assert report(exchange).tokens_after == report(exchange).tokens_before


def test_what_cannot_be_recorded_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An insert that could not be sent again the next time is not sent the first time."""
    with opened(tmp_path) as krunch:
        krunch.prepare([*talk(), user("Go on.")], model="gpt-4o", session="s")
        assert krunch.store is not None
        monkeypatch.setattr(krunch.store, "swap_state", _raise)
        exchange = ask(krunch)

    assert (report(exchange).reason, report(exchange).recall) == ("left", "not_recorded")
    assert not any(is_recalled(message) for message in exchange.messages)


def _raise(*_: Any, **__: Any) -> Any:
    raise StoreError("the disk is gone")


def test_two_workers_recall_the_same_for_one_request(tmp_path: Path) -> None:
    """Of many workers that prepare one request at the same time, all send the same bytes."""
    with opened(tmp_path) as one, opened(tmp_path) as other:
        ask(one)
        one.forget("s")
        barrier = threading.Barrier(6)

        def prepare(number: int) -> list[Message]:
            barrier.wait()
            return ask((one, other)[number % 2]).messages

        with ThreadPoolExecutor(6) as pool:
            sent = list(pool.map(prepare, range(6)))
        later = ask(other).messages

    assert any(is_recalled(message) for message in restore(sent[0]))
    assert all(messages == sent[0] for messages in [*sent, later])


def test_sessions_of_other_tenants_are_never_recalled(tmp_path: Path) -> None:
    """Another tenant's turns do not come back, not even where all of one's own sessions are searched."""
    with opened(tmp_path, context_sessions="all") as krunch:
        assert krunch.store is not None
        krunch.store.append("x", [user("My ferry ticket number is ZZ-0000.")], tenant="other")
        krunch.store.append("x", [user("My ferry ticket number is ZZ-1111.")])
        exchange = ask(krunch, tenant="mine")

    assert report(exchange).recall == "recalled"
    assert "ZZ-" not in str(restore(exchange.messages))


def test_earlier_sessions_are_recalled_where_that_is_wanted(tmp_path: Path) -> None:
    """With `context_sessions="all"` a turn of the tenant's other session comes back, said to be from there."""
    history = [*talk(fact="Nothing much."), QUESTION]
    with opened(tmp_path) as krunch:
        assert krunch.store is not None
        krunch.store.append("before", [{"role": "system", "content": "Secret rules of the ferry ticket number."}])
        krunch.store.append("before", [user("My ferry ticket number is ZZ-1111."), bot("Yes.")])
        here = krunch.prepare(history, model="gpt-4o", session="here")
    with opened(tmp_path, context_sessions="all") as krunch:
        everywhere = krunch.prepare(history, model="gpt-4o", session="everywhere")
        quoted = restore(everywhere.messages)[-2]["content"]
        assert krunch.store is not None
        krunch.forget("before")
        again = krunch.prepare(history, model="gpt-4o", session="everywhere")

    assert "ZZ-1111" not in str(restore(here.messages))
    assert ", user, in another conversation>\nMy ferry ticket number is ZZ-1111." in quoted
    assert ("before", 1) in report(everywhere).recalled
    assert "Secret rules" not in quoted
    assert "ZZ-1111" not in str(restore(again.messages))
    assert b"ZZ-1111" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("then", ["gone", "begun again"])
def test_what_another_process_forgot_is_not_sent_again(tmp_path: Path, then: str) -> None:
    """A quote of a session that is gone leaves the request at once, and the record with it; begun again or not."""
    history = [*talk(fact="Nothing much."), QUESTION]
    with opened(tmp_path, context_sessions="all") as krunch, ConversationStore(tmp_path) as other:
        other.append("before", [user("My ferry ticket number is ZZ-1111."), bot("Yes.")])
        first = krunch.prepare(history, model="gpt-4o", session="s")
        other.forget("before")
        if then == "begun again":
            other.append("before", [user("Good morning."), bot("Good morning.")])
        second = krunch.prepare(history, model="gpt-4o", session="s")

        assert "ZZ-1111" in str(restore(first.messages))
        assert "ZZ-1111" not in str(restore(second.messages))
        assert b"ZZ-1111" not in (other.get_state("s", "recall") or b"")


def test_retention_removes_what_quotes_the_turns_it_removed(tmp_path: Path) -> None:
    """An insert goes from the disk and from the request with a turn in it, one of turns that stay is sent again."""
    with opened(tmp_path) as krunch:
        assert krunch.store is not None
        first = krunch.prepare([*talk(), QUESTION], model="gpt-4o", session="s")
        told = [*small(20), user("Zebra enclosure: B-12."), *small(30)]
        later = [*talk(), QUESTION, bot("Look there."), *told, user("Where was that zebra enclosure?")]
        second = krunch.prepare(later, model="gpt-4o", session="s")
        assert report(first).recalled
        assert "B-12" in str(restore(second.messages)[-2])
        assert krunch.store.trim("s", min(number for _, number in report(second).recalled))
        kept = krunch.store.get_state("s", "recall") or b""
        again = krunch.prepare(later, model="gpt-4o", session="s")

    assert b"QX-7781" not in kept
    assert b"B-12" in kept
    assert again.messages == second.messages


def test_what_another_process_trimmed_is_not_sent_again(tmp_path: Path) -> None:
    """Quotes go from the disk where nobody watches for them, too; those in other sessions with the next request."""
    history = [*talk(fact="Nothing much."), QUESTION]
    with opened(tmp_path, context_sessions="all") as krunch, ConversationStore(tmp_path) as other:
        own = ask(krunch, "own")
        other.append("before", [user("My ferry ticket number is ZZ-1111."), bot("Yes."), bot("Bye.")])
        first = krunch.prepare(history, model="gpt-4o", session="s")
        other.trim("before", 2)
        other.trim("own", 6)
        second = krunch.prepare(history, model="gpt-4o", session="s")

        assert report(own).recalled
        assert "ZZ-1111" in str(restore(first.messages))
        assert "ZZ-1111" not in str(restore(second.messages))
        assert b"ZZ-1111" not in (other.get_state("s", "recall") or b"")
        assert other.get_state("own", "recall") is None


class Redactor:
    """A plugin that hides a number from the model, as redactors do."""

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        for message in exchange.messages:
            if "QX-7781" in str(message.get("content")):
                message["content"] = message["content"].replace("QX-7781", "<NUMBER_1>")
                exchange.substitute("<NUMBER_1>", "QX-7781")


def test_what_a_plugin_has_hidden_stays_hidden(tmp_path: Path) -> None:
    """The store has messages as the caller gave them; what is recalled is what the plugins made of them."""
    with opened(tmp_path, context_sessions="all") as krunch:
        krunch.register(Redactor())
        assert krunch.store is not None
        krunch.store.append("before", [user("The ferry ticket number is QX-7781, and of the ferry.")])
        exchange = ask(krunch)
        reply = exchange.finish(bot("It is <NUMBER_1>."))

    plain = restore(exchange.messages)
    assert report(exchange).recall == "recalled"
    assert "<NUMBER_1>" in plain[-2]["content"]
    assert "QX-7781" not in str(plain)
    assert reply == bot("It is QX-7781.")


def test_positions_without_definitions_move_with_their_messages(tmp_path: Path) -> None:
    """What the caller said of positions holds for the same messages afterwards, and inserts define nothing either."""
    last = len(talk()) - 1
    with opened(tmp_path) as krunch:
        exchange = ask(krunch, no_definitions=frozenset({1, 3, last}))

    plain = restore(exchange.messages)
    marked = [plain[at] for at in sorted(exchange.no_definitions)]
    assert marked[0] == talk()[1]
    assert marked[1] == talk()[last]
    assert is_recalled(marked[2])
    assert len(marked) == 3
    assert len(exchange.report.messages) == len(plain)
    assert all(exchange.report.messages[at].entries_added == 0 for at in exchange.no_definitions)


def test_recording_early_records_once(tmp_path: Path) -> None:
    """A request that is recorded before its reply, because messages leave it, is not recorded again with the reply."""
    history = talk()
    with opened(tmp_path) as krunch:
        for number in range(8):
            history.append(user(f"What is in list {number} again? " + "Say more. " * 30))
            history.append(krunch.prepare(history, model="gpt-4o", session="s").finish(bot(f"Answer {number}.")))
        assert krunch.store is not None

        assert [turn.message for turn in krunch.store.turns("s")] == history


def test_a_regenerated_reply_is_asked_for_with_the_same_request(tmp_path: Path) -> None:
    """A retry of the same messages sends the same bytes, though the store has a reply to them by now."""
    with opened(tmp_path) as krunch:
        first = ask(krunch)
        first.finish(bot("The ferry ticket number is QX-7781."))
        second = ask(krunch)

    assert second.messages == first.messages
    assert report(second).recall == "replayed"


def test_a_clock_in_the_system_prompt_does_not_lose_inserts(tmp_path: Path) -> None:
    """Instructions do not count in what a conversation is known by, so what was recalled is found all the same."""
    with opened(tmp_path) as krunch:
        ask(krunch)
        timed = [{"role": "system", "content": "You help with paperwork. It is 10:05."}, *talk()[1:], QUESTION]
        exchange = krunch.prepare(timed, model="gpt-4o", session="s")

    assert report(exchange).recall == "replayed"


def test_what_clients_rewrite_when_they_resend_does_not_lose_inserts(tmp_path: Path) -> None:
    """Cache marks that move, text in parts, empty fields and fields that only replies have make no other message."""
    with opened(tmp_path) as krunch:
        ask(krunch)
        again: list[Message] = [*talk(), QUESTION]
        again[1] = {"role": "user", "content": [{"type": "text", "text": "Hello.", "cache_control": {"type": "x"}}]}
        again[2] = {**again[2], "tool_calls": None, "provider_specific_fields": {"a": 1}, "refusal": None}
        again[-1] = {"role": "user", "content": [{"type": "text", "text": again[-1]["content"]}]}
        exchange = krunch.prepare(again, model="gpt-4o", session="s")

    assert report(exchange).recall == "replayed"


def test_images_and_thoughts_count(tmp_path: Path) -> None:
    """What is no text counts a thousand tokens, and thoughts count as the text that they are."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    shown = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "word " * 300, "signature": "x"}]}
    with Krunch(Settings(home=str(tmp_path), context_window=1500)) as krunch:
        exchange = krunch.prepare(
            [SYSTEM, user("Hello."), bot("Go ahead."), shown, bot("A ferry."), thought, user("Go on.")],
            model="gpt-4o", session="s",
        )  # fmt: skip
        one = krunch.prepare([SYSTEM, user("Hello."), shown, bot("Ferry."), QUESTION], model="gpt-4o", session="t")

    assert report(one).reason == "fits"
    assert 1_000 < report(one).tokens_before < 1_100
    assert 1_300 < report(exchange).tokens_before < 1_450


async def test_async_requests_are_the_same(tmp_path: Path) -> None:
    """`aprepare` sends what `prepare` sends, also for many at a time."""
    with opened(tmp_path) as krunch:
        first = ask(krunch)
        facts: dict[str, Any] = {"model": "gpt-4o", "session": "s"}
        several = await asyncio.gather(*(krunch.aprepare([*talk(), QUESTION], **facts) for _ in range(4)))

    assert all(exchange.messages == first.messages for exchange in several)


def test_the_plugin_is_there_only_with_a_window(tmp_path: Path) -> None:
    """Off by default: no plugin of this name, no work."""
    with Krunch(Settings(home=str(tmp_path))) as plain, opened(tmp_path) as krunch:
        assert "recall" not in [plugin.name for plugin in plain.plugins()]
        assert [plugin.hooks for plugin in krunch.plugins() if plugin.name == "recall"] == [("pre_request",)]


def test_a_state_is_put_only_where_the_expected_one_lies(tmp_path: Path) -> None:
    """`swap_state` compares and swaps, and begins no session."""
    with ConversationStore(tmp_path) as store:
        nobody = store.swap_state("s", "n", b"1", expect=None)
        store.append("s", [QUESTION])
        first = store.swap_state("s", "n", b"1", expect=None)
        stale = store.swap_state("s", "n", b"2", expect=b"0")
        second = store.swap_state("s", "n", b"2", expect=b"1")

        assert (nobody, first, stale, second) == (False, True, False, True)
        assert store.get_state("s", "n") == b"2"
        assert store.sessions() == ["s"]
