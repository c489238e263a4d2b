"""The namespaces of a long-term memory: each is a session, and this knows which there are."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING

from krunch_langchain.item_log import ItemLog

if TYPE_CHECKING:
    from krunch_plugins import ConversationStore
    from krunch_plugins.turns import TurnEvent

Namespace = tuple[str, ...]

_OPEN = 1024
"""Namespaces whose items are held in RAM."""


class Namespaces:
    """The item logs of one tenant by namespace. Thread-safe; follows what all processes do.

    Args:
        store: where they lie.
        tenant: under which tenant of the store.
    """

    def __init__(self, store: ConversationStore, tenant: str) -> None:
        self._store, self._tenant = store, tenant
        self._lock = threading.Lock()
        self._cursor: str | None = None
        self._names: dict[str, Namespace] = {}
        self._empty: set[str] = set()
        self._versions: dict[str, int] = {}
        self._clock = count()
        self._logs: OrderedDict[Namespace, ItemLog] = OrderedDict()

    def log(self, namespace: Namespace) -> ItemLog:
        """The items of one namespace, whether it has any or not."""
        with self._lock:
            log = self._logs.get(namespace)
            if log is None:
                log = self._logs[namespace] = ItemLog(self._store, self.session_of(namespace), self._tenant)
            self._logs.move_to_end(namespace)
            if len(self._logs) > _OPEN:
                self._logs.popitem(last=False)
            return log

    def below(self, prefix: Namespace) -> dict[Namespace, int]:
        """The namespaces that hold something and begin with these labels, in the order in which they were begun.

        Each has a number that is another one when something in it may have changed.
        """
        with self._lock:
            self._catch_up()
            size = len(prefix)
            return {
                namespace: self._versions[key]
                for key, namespace in self._names.items()
                if namespace[:size] == prefix and key not in self._empty
            }

    @staticmethod
    def session_of(namespace: Namespace) -> str:
        """The session that holds a namespace."""
        return json.dumps(list(namespace), ensure_ascii=False, separators=(",", ":"))

    def _catch_up(self) -> None:
        afresh = self._cursor is None
        while True:
            events, self._cursor = self._store.since(self._cursor, tenant=self._tenant)
            for event in events:
                afresh = afresh or event.kind == "reset"
                self._apply(event)
            if not events or afresh:
                break
        if afresh:
            # A first look gives them in no particular order.
            begun = {key: self._begun(namespace) for key, namespace in self._names.items()}
            self._names = dict(sorted(self._names.items(), key=lambda pair: begun[pair[0]]))

    def _apply(self, event: TurnEvent) -> None:
        if event.kind == "reset":
            self._names.clear()
            self._empty.clear()
            self._versions.clear()
        elif event.kind == "forget":
            self._names.pop(event.key, None)
            self._versions.pop(event.key, None)
        elif event.session is not None:
            self._names.setdefault(event.key, tuple(json.loads(event.session)))
            self._versions[event.key] = next(self._clock)
            if event.kind == "trim" and event.start == event.stop:
                self._empty.add(event.key)
            elif event.kind == "append":
                self._empty.discard(event.key)

    def _begun(self, namespace: Namespace) -> float:
        info = self._store.info(self.session_of(namespace), self._tenant)
        return info.created if info else 0.0
