"""The compression wing's door: compresses requests and expands replies."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from krunch_plugins import tokens
from krunch_plugins.compression import cost, encoder, legend, memo
from krunch_plugins.compression.dictionary import State
from krunch_plugins.compression.encoder import EncodedMessage, Encoder, Options
from krunch_plugins.compression.meanings import Meanings
from krunch_plugins.compression.rebase import ColdRebase, encode_whole
from krunch_plugins.compression.statistics import Name, Statistics
from krunch_plugins.compression.stream import ChunkExpander, expand_message
from krunch_plugins.compression.tools import SeenTools
from krunch_plugins.compression.windows import Windows
from krunch_plugins.errors import TokenizerUnavailable
from krunch_plugins.hookspecs import hookimpl
from krunch_plugins.report import MessageReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from krunch_plugins.compression.statistics import SessionStats, Stats
    from krunch_plugins.exchange import Exchange, Reply
    from krunch_plugins.report import Reason, Report
    from krunch_plugins.settings import Rebase, Settings
    from krunch_plugins.tokens import Tokenizer
    from krunch_plugins.turns import MemoStore, Message

log = logging.getLogger("krunch")


class _Work(NamedTuple):
    """What the messages of one request are encoded with, and whose they are."""

    encoder: Encoder
    literals: frozenset[str]
    owner: memo.Owner
    no_definitions: frozenset[int]


class CompressionPlugin:
    """Krunch's compression, as a plugin: last before a request is sent, first when a reply comes back.

    Args:
        settings: the options.
        clock: seconds since the epoch.
        memo_store: where all workers note a session's last request and rebase.
    """

    name = "compression"

    def __init__(
        self, settings: Settings, clock: Callable[[], float] = time.time, memo_store: MemoStore | None = None
    ) -> None:
        self._settings = settings
        self._options = Options(
            settings.profile, settings.roles, settings.min_tokens, settings.efficiency, settings.cache_floor
        )
        self._memo = memo.Memo(settings.memo_bytes, settings.efficiency.max_conversations)
        self._statistics = Statistics(settings.efficiency, clock)
        self._cold: ColdRebase | None = None
        if settings.rebase == "cold" and memo_store is not None:
            self._cold = ColdRebase(memo_store, clock)
        elif settings.rebase == "cold":
            log.warning('rebase="cold" does nothing without a memo store; give one to Krunch(memo_store=...)')
        self._tools = SeenTools(settings.efficiency.max_conversations)

    @hookimpl(trylast=True)
    def pre_request(self, exchange: Exchange) -> None:
        """Replace `exchange.messages` by what is sent, and fill in the report."""
        start = time.perf_counter()
        report = exchange.report
        report.encoding, report.estimated = tokens.encoding_for(exchange.model, self._settings.default_encoding)
        if self._settings.mode == "off":
            _pass_through(exchange, "off")
        else:
            try:
                tokenizer = tokens.load(report.encoding)
            except TokenizerUnavailable as error:
                log.warning("%s", error)
                _pass_through(exchange, "tokenizer_unavailable")
            else:
                self._compress(exchange, tokenizer)
        report.milliseconds = 1e3 * (time.perf_counter() - start)
        if log.isEnabledFor(logging.DEBUG):
            _log(report)

    @hookimpl(tryfirst=True)
    def post_response(self, exchange: Exchange, reply: Reply) -> None:
        """Expand the marks and substitutions in a reply that has not been expanded yet."""
        if not reply.expanded:
            reply.message, count = expand_message(
                reply.message, _meanings(exchange), exchange.substitutions, json_content=exchange.json_reply
            )
            exchange.report.symbols_expanded += count
            reply.expanded = True

    def chunk_expander(self, exchange: Exchange) -> ChunkExpander:
        """What expands one streamed reply to this request."""
        return ChunkExpander(_meanings(exchange), exchange.substitutions, json_content=exchange.json_reply)

    def windows(self, exchange: Exchange) -> Windows:
        """What expands the texts of one reply to this request, one by one."""
        return Windows(_meanings(exchange), exchange.substitutions)

    def stats(self, tenant: str | None = None) -> Stats:
        """What is remembered of all conversations, or of a tenant's."""
        return self._statistics.stats(self._memo.bytes, tenant)

    def session_stats(self, session: str, tenant: str | None) -> SessionStats | None:
        """What is remembered of one session."""
        return self._statistics.session(session, tenant)

    def note_usage(self, exchange: Exchange, usage: Mapping[str, Any]) -> None:
        """Take in what a reply told about its tokens."""
        if isinstance(exchange.conversation, Name):
            price = cost.price_of(exchange.model, self._settings)
            self._statistics.note_usage(exchange.conversation, usage, price, exchange.report)

    def forget(self, session: str | None = None, tenant: str | None = None) -> None:
        """Let go of the memo and the statistics: of a session, of a tenant, or of everything."""
        self._statistics.forget(session, tenant)
        if session is not None or tenant is not None:
            self._memo.forget(tenant, session)
            self._tools.forget(tenant, session)
        else:
            self._memo.clear()
            self._tools.clear()

    def _compress(self, exchange: Exchange, tokenizer: Tokenizer) -> None:
        report = exchange.report
        owner = (exchange.tenant, exchange.session)
        report.tools_tokens, literals = self._tools.look(exchange.tools, tokenizer, owner)
        minimum = cost.cache_minimum(exchange.model, self._settings)
        # Two models with one tokenizer share what was sent before, unless it depends on the model.
        options = self._options._replace(cache_minimum=minimum if self._options.cache_floor != "nothing" else 0)
        root = memo.root([tokenizer.name, _named(options), exchange.tenant, exchange.session, *sorted(literals)])
        keys = self._memo.keys(exchange.messages, root, exchange.no_definitions)
        work = _Work(Encoder(tokenizer, options), literals, owner, exchange.no_definitions)
        point, rebase = self._rebase_point(exchange, keys)
        if point:
            keys, encoded = self._encode_rebased(exchange.messages, keys, point, work)
        else:
            encoded = self._encode_all(exchange.messages, keys, work)
        _fill_in(report, encoded)
        price = cost.price_of(exchange.model, self._settings)
        if price is not None:
            report.cost = cost.request_cost(report.messages, report.tools_tokens, price, minimum, rebase)
        exchange.conversation = _name(exchange, keys)
        self._statistics.record(exchange.conversation, keys, encoded, report)
        if self._settings.mode == "on":
            exchange.messages = [
                message if done.sent is None else legend.replace_texts(message, done.sent)
                for message, done in zip(exchange.messages, encoded, strict=True)
            ]
            if any(done.sent is not None for done in encoded):  # else no mark of ours is in it
                state = encoded[-1].state
                meanings = Meanings.of_state(state, exchange.messages)
                exchange.meanings, exchange.symbols = meanings, meanings.symbols

    def _rebase_point(self, exchange: Exchange, keys: list[memo.Key]) -> tuple[int, Rebase]:
        """How many messages are encoded at once, and whether this request is the one that rewrites them."""
        if exchange.no_definitions:  # encoded at once, they would share definitions with all others
            return 0, "never"
        if self._settings.rebase == "always":
            return len(keys), "always"
        if self._cold is None or exchange.session is None or not keys:
            return 0, "never"
        lifetime = cost.cache_lifetime(exchange.model, self._settings, exchange.messages)
        point, cold = self._cold.point(keys, exchange.session, exchange.tenant, lifetime)
        return point, "cold" if cold else "never"

    def _encode_rebased(
        self, messages: list[Message], keys: list[memo.Key], point: int, work: _Work
    ) -> tuple[list[memo.Key], list[EncodedMessage]]:
        """The messages up to `point` encoded at once, those after it one by one; with keys of their own."""
        own = memo.keys(messages, memo.root(["rebase", str(point), keys[point - 1].hex()]))
        always = self._settings.rebase == "always"  # each request is another one; to keep them all would fill the memo
        encoded = [] if always else self._memo.longest(own)
        known = len(encoded)
        if known < point:
            known = 0
            encoded = self._encode_all(messages[:point], keys[:point], work)
            try:
                whole = encode_whole(messages[:point], work.literals, work.encoder)
            except Exception as error:  # noqa: BLE001 - a request fails open
                log.error("encoding a history at once failed with %s", type(error).__name__)  # noqa: TRY400 - no text
                whole = None
            if whole is not None and whole[-1].state.sent_tokens < encoded[-1].state.sent_tokens:
                encoded = whole
        if len(encoded) < len(messages):
            start = len(encoded)
            encoded = encoded + self._encode(messages[start:], start, encoded[-1].state, work)
        if not always:
            new = list(zip(own, encoded, strict=True))[known:]
            self._memo.add(own[known - 1] if known else None, new, work.owner)
        return own, encoded

    def _encode_all(self, messages: list[Message], keys: list[memo.Key], work: _Work) -> list[EncodedMessage]:
        """The messages one by one, as far as they are not remembered."""
        encoded = self._memo.longest(keys)
        known = len(encoded)
        if known < len(keys):
            state = encoded[-1].state if encoded else State.empty(work.literals)
            encoded += self._encode(messages[known:], known, state, work)
            new = list(zip(keys, encoded, strict=True))[known:]
            self._memo.add(keys[known - 1] if known else None, new, work.owner, messages[known:])
        return encoded

    def _encode(self, messages: list[Message], start: int, state: State, work: _Work) -> list[EncodedMessage]:
        """Encode the messages that come after `state`."""
        if not state.claim():
            state = state.own()
        out: list[EncodedMessage] = []
        try:
            for index, message in enumerate(messages, start):
                try:
                    done = work.encoder.encode(message, index, state, defines=index not in work.no_definitions)
                except Exception as error:  # noqa: BLE001 - a request fails open
                    log.error("compressing message %d failed with %s", index, type(error).__name__)  # noqa: TRY400 - no text
                    broken, state = state, state.own()  # the dictionary may hold half of what the message defines
                    broken.release()
                    done = encoder.plain(message, index, state, work.encoder.options)
                out.append(done)
                state = done.state
        finally:
            state.release()
        return out


@lru_cache(maxsize=64)
def _named(options: Options) -> str:
    """The options as text, the same in every process."""
    roles = sorted(options.roles)  # a set's own order depends on the hash seed
    return repr((roles, options._replace(roles=frozenset())))


def _name(exchange: Exchange, keys: Sequence[memo.Key]) -> Name:
    """What the conversation is known by: its session, else the key of its first request."""
    if exchange.session is not None or not keys:
        return Name(exchange.tenant, exchange.session, b"")
    replies = (index for index, message in enumerate(exchange.messages) if index and message.get("role") == "assistant")
    return Name(exchange.tenant, None, keys[next(replies, len(keys)) - 1])


def _meanings(exchange: Exchange) -> Meanings | None:
    """What the marks of a request stand for; None if it was not compressed."""
    return exchange.meanings if isinstance(exchange.meanings, Meanings) else None


def _pass_through(exchange: Exchange, reason: Reason) -> None:
    exchange.report.messages = [
        MessageReport(index, str(message.get("role", "")), 0, 0, 0, 0, 0, reason)
        for index, message in enumerate(exchange.messages)
    ]


def _fill_in(report: Report, encoded: list[EncodedMessage]) -> None:
    report.messages = [done.report for done in encoded]
    # Lists, because they are summed up faster than what is made one by one, and there may be a thousand messages.
    report.tokens_before += sum([done.tokens_before for done in report.messages])
    report.tokens_after += sum([done.tokens_after for done in report.messages])
    report.overhead_tokens += sum([done.overhead_tokens for done in report.messages])


def _log(report: Report) -> None:
    """The decisions, without any text."""
    for message in report.messages:
        log.debug("message %d (%s): %s, %d → %d tokens, %d of them legend", message.index, message.role, message.reason,
                  message.tokens_before, message.tokens_after, message.overhead_tokens)  # fmt: skip
    log.debug("request: %d → %d tokens (%s), %.2f ms", report.tokens_before, report.tokens_after,
              report.encoding, report.milliseconds)  # fmt: skip
