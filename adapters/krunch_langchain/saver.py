"""`KrunchSaver`: LangGraph's checkpoints on the history store, as deltas instead of full copies."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from krunch_langchain.shared import place_of, shared_store
from krunch_langchain.thread_log import Place, State, ThreadLog
from krunch_plugins.errors import FrameDamaged, RecordsLost, SessionsDamaged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from krunch_plugins import ConversationStore

_KIND = "checkpoints"
_HELD_BYTES, _HELD_THREADS, _COUNTED_AGAIN = 64_000_000, 1024, 16
"""What is held in RAM of threads, those that were used last. Others are read from the store again."""
_KEEP_LATEST, _DELETE = "keep_latest", "delete"
_COUNTERS = "counters_since_delta_snapshot"
"""Where LangGraph's metadata names the channels whose values are to be rebuilt from earlier writes."""


_UNREADABLE = (FrameDamaged, RecordsLost, ValueError)
"""What is wrong with a thread of which something is damaged; others are not concerned."""


class KrunchSaver(BaseCheckpointSaver[Any]):
    """Checkpoints for LangGraph: every state of every thread, each value stored once, on disk when a call returns.

    Thread-safe; any number of processes may share one. What a step left as it was takes no room, a list that grew
    takes what was added, and what was written by a task and then put into the state is stored once.

    Nothing is ever unpickled, and only LangGraph's own safe types are built when a state is read; others come back as
    plain data, with a warning from LangGraph that names them. Say which of yours may be built with `allowed_types`;
    those that a graph's state names are added where LangGraph does so (`LANGGRAPH_STRICT_MSGPACK`).

    Args:
        store: where to keep them; default `shared_store()`.
        tenant: who owns the threads; what belongs to one tenant is invisible to every other.
        allowed_types: classes of your own that states may hold.
        serde: another serializer, instead of LangGraph's; `allowed_types` is its own business then.

    Raises:
        ValueError: `serde` would unpickle.
    """

    def __init__(
        self,
        store: ConversationStore | None = None,
        *,
        tenant: str | None = None,
        allowed_types: Iterable[type] = (),
        serde: SerializerProtocol | None = None,
    ) -> None:
        if getattr(serde, "pickle_fallback", False):
            raise ValueError("KrunchSaver never unpickles what is stored; use a serializer with pickle_fallback=False")
        if serde is None:
            serde = JsonPlusSerializer(allowed_msgpack_modules=list(allowed_types) or None)
        super().__init__(serde=serde)
        self._store = store or shared_store()
        self._tenant = place_of(_KIND, tenant)
        self._lock = threading.Lock()
        self._threads: OrderedDict[str, ThreadLog] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that a config names, or the newest of its thread and namespace; None if there is none.

        Raises:
            StoreError: the store could not be read.
        """
        thread, ns = _thread(config), _namespace(config)
        log = self._thread(thread)
        with log.lock:
            state = log.state()
            named = get_checkpoint_id(config)
            checkpoint_id = named or max((place[1] for place in state.checkpoints if place[0] == ns), default=None)
            if checkpoint_id is None or (ns, checkpoint_id) not in state.checkpoints:
                return None
            return self._tuple(state, thread, (ns, checkpoint_id))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, the newest first.

        Args:
            config: of this thread, of this namespace and with this id, as far as it says; None: of all threads.
            filter: only those whose metadata has these values.
            before: only those older than the checkpoint that this names.
            limit: how many at most.

        Raises:
            StoreError: the store could not be read.
            SessionsDamaged: of all threads, some could not be read. Those of all others have been given by then.
        """
        ns = config["configurable"].get("checkpoint_ns") if config else None
        named = get_checkpoint_id(config) if config else None
        older = get_checkpoint_id(before) if before else None
        found: list[tuple[str, str, Place]] = []
        damaged: list[str] = []
        for thread in [_thread(config)] if config else self._store.sessions(self._tenant):
            log = self._thread(thread)
            try:
                with log.lock:
                    found += [(place[1], thread, place) for place in log.state().checkpoints]
            except _UNREADABLE:
                if config:
                    raise
                damaged.append(thread)
        left = limit
        for checkpoint_id, thread, place in sorted(found, reverse=True):
            if left is not None and left <= 0:
                break
            if (ns is not None and place[0] != ns) or (named and checkpoint_id != named):
                continue
            if older and checkpoint_id >= older:
                continue
            log = self._thread(thread)
            with log.lock:
                state = log.state()
                saved = state.checkpoints.get(place)
                metadata = state.values.load(saved.metadata, self.serde) if saved else {}
                if saved is None or any(metadata.get(key) != value for key, value in (filter or {}).items()):
                    continue
                one = self._tuple(state, thread, place)
            left = None if left is None else left - 1
            yield one
        if damaged:
            raise SessionsDamaged(damaged, "and their checkpoints are not among those that were given")

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint.

        Returns:
            The config that names it.

        Raises:
            StoreError: it could not be stored.
        """
        thread, place = _thread(config), (_namespace(config), checkpoint["id"])
        parent = config["configurable"].get("checkpoint_id")
        about = get_checkpoint_metadata(config, metadata)
        self._thread(thread).put(place, parent, checkpoint, about, new_versions, self.serde)
        return _config(thread, place)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Keep what a task wrote after a checkpoint.

        Raises:
            StoreError: it could not be stored.
        """
        place = _namespace(config), config["configurable"]["checkpoint_id"]
        self._thread(_thread(config)).put_writes(place, writes, task_id, task_path, self.serde)

    def delete_thread(self, thread_id: str) -> None:
        """Remove all checkpoints and writes of a thread, and every trace of them on disk."""
        self._thread(str(thread_id)).forget()

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that these runs made, in all threads, and their writes.

        Raises:
            StoreError: the store could not be read or written.
            SessionsDamaged: some threads could not be read, and are as they were; it was done in all others.
        """
        runs = set(run_ids)
        if not runs:
            return

        def others(state: State) -> Iterator[Place]:
            for place, saved in state.checkpoints.items():
                if state.values.load(saved.metadata, self.serde).get("run_id") not in runs:
                    yield place

        damaged: list[str] = []
        for thread in self._store.sessions(self._tenant):
            log = self._thread(thread)
            try:
                with log.lock:
                    state = log.state()
                    if len([*others(state)]) < len(state.checkpoints):
                        log.keep(others)
            except _UNREADABLE:
                damaged.append(thread)
        if damaged:
            raise SessionsDamaged(damaged, "and what these runs left in them is still there")

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Add all checkpoints and writes of one thread to another."""
        if str(source_thread_id) != str(target_thread_id):
            self._thread(str(source_thread_id)).copy_to(self._thread(str(target_thread_id)))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = _KEEP_LATEST) -> None:
        """Remove old checkpoints of threads.

        Args:
            thread_ids: which threads.
            strategy: "keep_latest" keeps the newest of each namespace, and those before it that LangGraph rebuilds its
                delta channels from; "delete" keeps none.

        Raises:
            ValueError: another strategy.
        """
        if strategy not in (_KEEP_LATEST, _DELETE):
            raise ValueError(f"prune(strategy={strategy!r}); there are {_KEEP_LATEST!r} and {_DELETE!r}")
        for thread in map(str, thread_ids):
            self._thread(thread).keep(self._needed if strategy == _KEEP_LATEST else lambda _: ())

    def get_next_version(self, current: Any, channel: None) -> Any:  # noqa: ANN401, ARG002 - LangGraph's signature
        """Whole numbers. Those of a thread that another saver began go on in its own form."""
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"  # noqa: S311 - as LangGraph's savers
        return 1 if current is None else current + 1

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`get_tuple`, in a worker thread."""
        return await asyncio.to_thread(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """`list`, each checkpoint read in a worker thread."""
        found = self.list(config, filter=filter, before=before, limit=limit)
        while (one := await asyncio.to_thread(next, found, None)) is not None:
            yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`put`, in a worker thread."""
        return await asyncio.to_thread(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`put_writes`, in a worker thread."""
        await asyncio.to_thread(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """`delete_thread`, in a worker thread."""
        await asyncio.to_thread(self.delete_thread, thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`delete_for_runs`, in a worker thread."""
        await asyncio.to_thread(self.delete_for_runs, run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`copy_thread`, in a worker thread."""
        await asyncio.to_thread(self.copy_thread, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = _KEEP_LATEST) -> None:
        """`prune`, in a worker thread."""
        await asyncio.to_thread(self.prune, thread_ids, strategy=strategy)

    def _thread(self, thread: str) -> ThreadLog:
        with self._lock:
            log = self._threads.get(thread)
            if log is None:
                log = self._threads[thread] = ThreadLog(self._store, thread, self._tenant)
            self._threads.move_to_end(thread)
            # Logs grow after they were handed out, so those that were last are counted again; not all of them each
            # time, which took 5 ms with 40,000 threads.
            for name in islice(reversed(self._threads), _COUNTED_AGAIN):
                self._sizes[name] = self._threads[name].bytes
            held = sum(self._sizes.values())  # not kept: LangGraph makes shallow copies of savers
            while (held > _HELD_BYTES or len(self._threads) > _HELD_THREADS) and len(self._threads) > 1:
                held -= self._sizes.pop(self._threads.popitem(last=False)[0], 0)
            return log

    def _tuple(self, state: State, thread: str, place: Place) -> CheckpointTuple:
        saved = state.checkpoints[place]
        rest = state.values.load(saved.skeleton, self.serde)
        values = {channel: state.values.load(number, self.serde) for channel, number in saved.values.items()}
        return CheckpointTuple(
            config=_config(thread, place),
            checkpoint=cast("Checkpoint", {**rest, "channel_values": values}),
            metadata=state.values.load(saved.metadata, self.serde),
            parent_config=_config(thread, (place[0], saved.parent)) if saved.parent else None,
            pending_writes=[
                (task, channel, state.values.load(number, self.serde))
                for task, channel, number in state.ordered_writes(place)
            ],
        )

    def _needed(self, state: State) -> set[Place]:
        """The newest checkpoint of each namespace, and those that its delta channels are rebuilt from."""
        needed: set[Place] = set()
        for ns in {place[0] for place in state.checkpoints}:
            at: str | None = max(place[1] for place in state.checkpoints if place[0] == ns)
            newest = state.checkpoints[ns, str(at)]
            counters = state.values.load(newest.metadata, self.serde).get(_COUNTERS) or {}
            missing = set(counters) - set(newest.values)
            needed.add((ns, str(at)))
            at = newest.parent
            while missing and at is not None and (ns, at) in state.checkpoints:
                needed.add((ns, at))
                missing -= set(state.checkpoints[ns, at].values)
                at = state.checkpoints[ns, at].parent
        return needed


def _thread(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])


def _namespace(config: RunnableConfig) -> str:
    return str(config["configurable"].get("checkpoint_ns", ""))


def _config(thread: str, place: Place) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": place[0], "checkpoint_id": place[1]}}
