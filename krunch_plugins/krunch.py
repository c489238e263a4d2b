"""Krunch: the one object that programs and adapters talk to. Wires the wings together."""

from __future__ import annotations

import asyncio
import copy
import time
from typing import TYPE_CHECKING, Any, Self, cast, overload

from krunch_plugins.compression.plugin import CompressionPlugin
from krunch_plugins.exchange import Exchange, Reply
from krunch_plugins.history import History
from krunch_plugins.isolation import are_dicts, copy_tree
from krunch_plugins.plugins import PluginInfo, Plugins
from krunch_plugins.recall.context import Contexts, HeldTurns
from krunch_plugins.recall.plugin import RecallPlugin
from krunch_plugins.recall.recall import Recall
from krunch_plugins.recall.window import Window
from krunch_plugins.report import Report
from krunch_plugins.settings import Settings
from krunch_plugins.storage.configured import hold_recent, open_store
from krunch_plugins.storage.plugin import RecentTurnsPlugin, StoragePlugin
from krunch_plugins.streams import RepliedTexts, StreamedReply
from krunch_plugins.turns import characters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from krunch_plugins.compression.statistics import SessionStats, Stats
    from krunch_plugins.exchange import StreamExpander, TextExpander
    from krunch_plugins.storage.recent import RecentTurns
    from krunch_plugins.storage.retention import Forgotten
    from krunch_plugins.storage.store import ConversationStore
    from krunch_plugins.turns import Embedder, EvictReason, MemoStore, Message, Turn


class Krunch(History):
    """Compresses requests, expands replies, and runs the plugins around both.

    Thread-safe; one instance serves many sessions and tenants. A context manager; `close()` does the same.

    Args:
        settings: the options; None takes them from `KRUNCH_*` variables and the file that `KRUNCH_CONFIG` names.
        plugins: outside plugins to register, beside those that installed distributions offer.
        memo_store: where all workers note a session's last request and rebase; only `rebase="cold"` needs it. Default:
            the history store, if there is one.
        store: a history store of the caller's own, instead of one in `Settings.home`; the caller closes it.
        embedder: turns texts into the vectors of the search; default: the built-in one.
        clock: seconds since the epoch; for tests.

    Raises:
        SettingsError: a setting is unknown or out of range.
        PluginError: one of `plugins` cannot be registered.
        StoreUnavailable: `Settings.home` cannot be used.

    Attributes:
        settings: the options.
        store: the history store, the caller's own or the one in `Settings.home`; None if there is neither: then nothing
            is written to disk, and recent turns live in RAM only (`recent`).
    """

    def __init__(  # noqa: PLR0913 - each is a part that somebody brings, and all have defaults
        self,
        settings: Settings | None = None,
        *,
        plugins: Iterable[object] = (),
        memo_store: MemoStore | None = None,
        store: ConversationStore | None = None,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = Settings.from_environment() if settings is None else settings
        self._clock, self._origin = clock, self
        self.store = open_store(self.settings, clock) if store is None else store
        self._owns_store = store is None
        self._memo_store = memo_store or self.store
        self._recent = None if self.store else hold_recent(self.settings, clock, self._tell_evicted)
        storage = StoragePlugin(self.store) if self.store else RecentTurnsPlugin(cast("RecentTurns", self._recent))
        self._storage = storage
        self._record_request = storage.record_request if isinstance(storage, StoragePlugin) else None
        self._recall = Recall(self.settings, self.store, embedder)
        self._wire(None)
        if self.store is not None:
            assert isinstance(storage, StoragePlugin)
            self._leave += [storage.close, self.store.on_evict(self._plugins.on_evict)]
        try:
            self._plugins.load_entry_points()
            for plugin in plugins:
                self._plugins.register(plugin)
        except BaseException:
            self.close()  # nobody else could: the caller never gets this object
            raise

    def _wire(self, shared: Plugins | None) -> None:
        """Make what depends on the settings of requests, and join it with what does not."""
        self._compression = CompressionPlugin(self.settings, self._clock, self._memo_store)
        window = Window(
            self.settings,
            self.store,
            self._find_or_fail,
            self._record_request,
            lambda: self._plugins.has_outside("pre_request"),
        )
        keeper = {} if self.settings.context_window is None else {RecallPlugin.name: RecallPlugin(window)}
        parts = {
            **keeper,
            "compression": self._compression,
            **self._recall.plugins(),
            self._storage.name: self._storage,
        }
        self._plugins = Plugins(parts, shared)
        self._contexts = Contexts(
            self.store or HeldTurns(self.recent), self._find_or_fail, self.settings.default_encoding
        )
        self._leave: list[Callable[[], None]] = []
        if self.store is not None:
            self._leave += [self.store.on_forget(window.forget), self.store.on_trim(window.trimmed)]

    def with_settings(self, settings: Settings) -> Krunch:
        """One that prepares requests with other settings, and has all else in common with this one.

        That is the store or the recent turns, the search and its indexes, and outside plugins: what is registered with
        either is registered with both. So what is said of those in `settings` does not count (`home`, `durability`,
        `hot_*`, `retention_*`, `tenant_quota_bytes`, `recall`). What was sent before, and statistics, are its own.

        Close it before this one; that lets go of its own parts only.

        Raises:
            PluginError: an outside plugin has the name of a part that only the new settings ask for.
        """
        other = copy.copy(self)
        other.settings = settings
        other._wire(self._origin._plugins)  # noqa: SLF001 - one of its own kind
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything held in memory, and close the store, unless it is the caller's. Safe to call twice.

        The instance can still be used, starting afresh, but it records nothing any more.
        """
        self._compression.forget()
        if self._origin is not self:
            for leave in self._leave:
                leave()
            return
        self._recall.close()
        if self.store is not None and self._owns_store:
            self.store.close()  # whoever watches turns leave is told about these, too
        for leave in self._leave:
            leave()
        if self._recent is not None:
            self._recent.close()

    @overload
    def stats(self, *, tenant: str | None = None) -> Stats: ...

    @overload
    def stats(self, session: None = None, *, tenant: str | None = None) -> Stats: ...

    @overload
    def stats(self, session: str, *, tenant: str | None = None) -> SessionStats | None: ...

    def stats(self, session: str | None = None, *, tenant: str | None = None) -> Stats | SessionStats | None:
        """What happened in this process: figures only, no text.

        Args:
            session: only this session, with its series.
            tenant: whose session; without a session: only this tenant's conversations.

        Returns:
            All conversations that are remembered (of the tenant, if one is given); or one session, None if nothing is
            remembered of it.
        """
        if session is None:
            return self._compression.stats(tenant)
        return self._compression.session_stats(session, tenant)

    def reset(self, session: str | None = None, *, tenant: str | None = None) -> None:
        """Forget statistics and what was sent before. What is sent does not change; the next request costs more time.

        Args:
            session: only this session.
            tenant: whose session; without a session: all of this tenant. With neither, everything is forgotten.
        """
        self._compression.forget(session, tenant)

    def forget(self, session: str, *, tenant: str | None = None) -> Forgotten | None:
        """Remove every trace of a session: its history, if there is a store, its statistics, what was sent before.

        Returns:
            What the store removed; None without a store.

        Raises:
            StoreError: the store could not remove all of it.
        """
        self._compression.forget(session, tenant)
        if self._recent is not None:
            self._recent.forget(session, tenant=tenant)
        return None if self.store is None else self.store.forget(session, tenant=tenant)

    def record(
        self,
        messages: Sequence[Message],
        *,
        session: str,
        tenant: str | None = None,
        turn_metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Put what is new of a conversation into the store, without a request: for turns that reach no model.

        What was recorded before, by this or by exchanges, is not recorded again. Without a store, nothing happens.

        Args:
            messages: the conversation from its beginning, or as much of it as the caller has; OpenAI format.
            session: its id.
            tenant: who owns the session.
            turn_metadata: what the store is to keep with each message; one for each, JSON-like.

        Raises:
            StoreError: it could not be recorded.
            TypeError: `messages` is no sequence of dicts.
        """
        if self._record_request is not None:
            exchange = self._exchange(messages, "", session, tenant, None, json_reply=False)
            exchange.turn_metadata = turn_metadata
            self._record_request(exchange)

    def _tell_evicted(self, session: str, turns: list[Turn], reason: EvictReason, tenant: str | None) -> None:
        self._plugins.on_evict(session, turns, reason, tenant)

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Register an outside plugin; see `hookspecs` for what it can be.

        Returns:
            Its name, or None if `KRUNCH_DISABLE_PLUGINS` keeps it out.

        Raises:
            PluginError: unknown hook, wrong signature, no hook at all, or a name that is taken.
        """
        return self._plugins.register(plugin, name)

    def unregister(self, plugin: object) -> None:
        """Take an outside plugin (the object or its name) out again.

        Raises:
            PluginError: it is not registered, or is one of Krunch's own parts.
        """
        self._plugins.unregister(plugin)

    def plugins(self) -> tuple[PluginInfo, ...]:
        """All registered plugins, Krunch's own among them."""
        return self._plugins.infos()

    def prepare(  # noqa: PLR0913 - each is a fact of its own about the request, given by name
        self,
        messages: Sequence[Message],
        *,
        model: str,
        session: str | None = None,
        tenant: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        json_reply: bool = False,
        turn_metadata: Sequence[Mapping[str, Any] | None] | None = None,
        no_definitions: frozenset[int] = frozenset(),
    ) -> Exchange:
        """Run the `pre_request` hooks over a request.

        Args:
            messages: chat messages, OpenAI format, the whole history as the client sends it. Never changed.
            model: the model's name; it chooses the tokenizer.
            session: the conversation's id, any string.
            tenant: who owns the session; what belongs to one tenant is invisible to every other.
            tools: tool definitions; counted and scanned for marks, never changed.
            json_reply: the reply's text will be one JSON document, because the request asks for that.
            turn_metadata: what the store is to keep with each message, if that is recorded; one for each, JSON-like.
            no_definitions: positions of messages that may use what earlier ones define, but define nothing themselves.

        Returns:
            The exchange: `.messages` is what to send, `.report` what was saved and why.

        Raises:
            RequestRefused: a plugin stopped the call.
            TypeError: `messages` is no sequence of dicts.
        """
        exchange = self._exchange(messages, model, session, tenant, tools, json_reply=json_reply)
        exchange.turn_metadata, exchange.no_definitions = turn_metadata, no_definitions
        self._plugins.pre_request(exchange)
        return exchange

    async def aprepare(  # noqa: PLR0913 - as `prepare`
        self,
        messages: Sequence[Message],
        *,
        model: str,
        session: str | None = None,
        tenant: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        json_reply: bool = False,
        turn_metadata: Sequence[Mapping[str, Any] | None] | None = None,
        no_definitions: frozenset[int] = frozenset(),
    ) -> Exchange:
        """`prepare` for async callers: in a worker thread when it may take long.

        That is when the request is large, outside plugins see it, or a store is asked (`rebase="cold"`, a
        `context_window`).
        """
        exchange = self._exchange(messages, model, session, tenant, tools, json_reply=json_reply)
        exchange.turn_metadata, exchange.no_definitions = turn_metadata, no_definitions
        waits = self.settings.rebase == "cold" or self.settings.context_window is not None
        slow = waits or self._plugins.has_outside("pre_request")
        if slow or self._is_large(exchange.messages):
            await asyncio.to_thread(self._plugins.pre_request, exchange)
        else:
            self._plugins.pre_request(exchange)
        return exchange

    def finish(
        self, exchange: Exchange, message: Message, choice: int, metadata: Mapping[str, Any] | None = None
    ) -> Message:
        """Expand a whole reply and run the `post_response` hooks; `Exchange.finish` is the way to call it."""
        reply = Reply(copy_tree(message), choice, metadata=metadata or {})
        self._plugins.post_response(exchange, reply)
        return reply.message

    async def afinish(
        self, exchange: Exchange, message: Message, choice: int, metadata: Mapping[str, Any] | None = None
    ) -> Message:
        """`finish`, in a worker thread when the reply is large, is recorded on disk, or outside plugins see it."""
        if self._hooks_may_wait() or self._is_large([message]):
            return await asyncio.to_thread(self.finish, exchange, message, choice, metadata)
        return self.finish(exchange, message, choice, metadata)

    def stream(self, exchange: Exchange) -> StreamExpander:
        """A fresh expander for one streamed reply; `Exchange.stream` is the way to call it."""
        chunks = self._compression.chunk_expander(exchange)
        return StreamedReply(self._plugins, exchange, chunks, self._hooks_may_wait)

    def texts(self, exchange: Exchange) -> TextExpander:
        """A fresh expander for one reply whose texts come one by one; `Exchange.texts` is the way to call it."""
        return RepliedTexts(self._plugins, exchange, self._compression.windows(exchange), self._hooks_may_wait)

    def note_usage(self, exchange: Exchange, usage: Mapping[str, Any]) -> None:
        """Take what the provider counted into the statistics; `Exchange.note_usage` is the way to call it."""
        self._compression.note_usage(exchange, usage)

    def _exchange(  # noqa: PLR0913 - as `prepare`
        self,
        messages: Sequence[Message],
        model: str,
        session: str | None,
        tenant: str | None,
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        json_reply: bool,
    ) -> Exchange:
        if isinstance(messages, (str, bytes)) or not are_dicts(messages):
            raise TypeError("messages must be a sequence of dicts, as OpenAI's chat API takes them")
        # An outside plugin may change messages in place, at any depth; the caller's own objects must not change.
        mutable = self._plugins.has_outside("pre_request")
        copies = copy_tree(list(messages)) if mutable else [{**message} for message in messages]
        return Exchange(
            messages=copies,
            model=model,
            session=session,
            tenant=tenant,
            tools=tools,
            json_reply=json_reply,
            original=messages,
            report=Report(mode=self.settings.mode),
            runtime=self,
        )

    def _hooks_may_wait(self) -> bool:
        """Whether what runs on a reply may keep an event loop waiting: for the disk, or for other people's code."""
        outside = self._plugins.has_outside
        return self.store is not None or outside("post_response") or outside("on_evict")

    def _is_large(self, messages: Iterable[Message]) -> bool:
        limit, total = self.settings.large_request, 0
        for message in messages:
            total += characters(message)
            if total > limit:
                return True
        return False
