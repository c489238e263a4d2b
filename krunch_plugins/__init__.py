"""Krunch: lossless, token-aware request compression, history and recall for LLM frameworks."""

from krunch_plugins._version import __version__
from krunch_plugins.compression.decoder import restore
from krunch_plugins.compression.rebase import MemoryStore
from krunch_plugins.compression.statistics import SessionStats, Stats, Usage
from krunch_plugins.default import default_krunch
from krunch_plugins.errors import KrunchError, RequestRefused
from krunch_plugins.exchange import Exchange, Reply
from krunch_plugins.hookspecs import hookimpl
from krunch_plugins.krunch import Krunch
from krunch_plugins.recall.background import BackgroundIndex
from krunch_plugins.recall.quoting import is_recalled
from krunch_plugins.report import ContextReport, Cost, MessageReport, Problem, Report
from krunch_plugins.settings import Settings
from krunch_plugins.storage.store import ConversationStore
from krunch_plugins.tokens import load_tokenizer
from krunch_plugins.turns import Embedder, MemoStore, SearchHit, SearchQuery, Turn

__all__ = [
    "BackgroundIndex",
    "ContextReport",
    "ConversationStore",
    "Cost",
    "Embedder",
    "Exchange",
    "Krunch",
    "KrunchError",
    "MemoStore",
    "MemoryStore",
    "MessageReport",
    "Problem",
    "Reply",
    "Report",
    "RequestRefused",
    "SearchHit",
    "SearchQuery",
    "SessionStats",
    "Settings",
    "Stats",
    "Turn",
    "Usage",
    "__version__",
    "default_krunch",
    "hookimpl",
    "is_recalled",
    "load_tokenizer",
    "restore",
]
