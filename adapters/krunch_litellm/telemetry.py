"""What the proxy's operator is told about each request. Figures and names only, never message text.

The proxy's hooks call `aheed` before a request, `prepared`, `ended` and `failed`; nothing here raises into them. From
here it goes to the figures that all workers share, to Prometheus where LiteLLM has it on, and to OpenTelemetry.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import hashlib
import logging
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, ParamSpec
from weakref import WeakSet

from krunch_litellm import chains, legends, metrics, traces
from krunch_litellm.entries import Failed, Prepared, Replied, storable
from krunch_litellm.workers import Workers
from krunch_plugins import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from krunch_litellm.figures import Reset
    from krunch_litellm.proxied import ProxiedCall
    from krunch_plugins import Krunch

log = logging.getLogger("krunch")

Stage = Literal["settings", "prepare", "send", "expand", "stream", "end", "headers", "telemetry"]
"""Where something of ours failed: reading the settings, preparing a request, writing it back, expanding a whole reply,
expanding a chunk, ending a stream, naming the response headers, or counting."""

OTHER_MODEL = "(other)"
_MODELS = 200
_LONGEST_NAME = 256
_P = ParamSpec("_P")

_lock, _heeding = threading.Lock(), threading.Lock()
_workers: Workers | None = None
_serving: WeakSet[Krunch] = WeakSet()
_models: set[str] = set()


def _quietly(function: Callable[_P, None]) -> Callable[_P, None]:
    """Counting must not harm what is counted."""

    @functools.wraps(function)
    def quiet(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - ours, never the client's
            log.warning("%s() of the telemetry failed with %s", function.__name__, type(error).__name__)
            with suppress(Exception):  # it may be what failed
                metrics.failed("telemetry", type(error).__name__)

    return quiet


def workers(krunch: Krunch) -> Workers:
    """What this worker shares with the others; made at first use, with the settings of `krunch`. Closed at exit."""
    global _workers  # noqa: PLW0603 - one a process is the point
    with _lock:
        _serving.add(krunch)
        if _workers is None:
            _workers = Workers(krunch, memory_kb)
            atexit.register(_workers.close)  # what was noted last is not written yet
        return _workers


def memory_kb() -> float:
    """What this worker's memos, statistics and replies to go on from hold in memory, KiB, estimated."""
    return sum(krunch.stats().memory_usage_kb for krunch in tuple(_serving)) + chains.memory_kb() + legends.memory_kb()


@_quietly
def heed(krunch: Krunch) -> None:
    """Forget what was reset or forgotten in another worker since the last call. May wait for the disk."""
    shared = workers(krunch)
    with _heeding:  # whoever finds nothing to forget goes on only when it is forgotten
        for reset in shared.heed():
            forget(reset)


async def aheed(krunch: Krunch) -> None:
    """`heed`, before each request: what may wait for the disk runs in a thread."""
    if _workers is None or _workers.is_behind or _heeding.locked():
        await asyncio.to_thread(heed, krunch)
    else:
        workers(krunch)


@_quietly
def prepared(call: ProxiedCall) -> None:
    """A request was prepared and is about to be sent; `call.exchange.report` has its figures."""
    exchange, identity = call.exchange, call.identity
    report, model = exchange.report, _label(call.model)
    reasons: Counter[str] = Counter()
    symbols = 0
    for message in report.messages:
        reasons[message.reason] += 1
        symbols += message.entries_added
    now = call.counted = time.time()
    shared = workers(call.krunch)
    key = shared.figures.key
    shared.note(
        Prepared(
            name=_name(call),
            tenant=identity.tenant,
            session=identity.session,
            model=model,
            at=now,
            tokens_before=report.tokens_before,
            tokens_after=report.tokens_after,
            overhead_tokens=report.overhead_tokens,
            cost_plain=report.cost.plain if report.cost else 0.0,
            cost_sent=report.cost.sent if report.cost else 0.0,
            symbols=symbols,
            reasons=reasons,
            legend=b"" if identity.session is None else legends.digest(key, exchange.symbols),
            scope=legends.scope(key, call.scope),
            deployment=exchange.model[:_LONGEST_NAME],
        )
    )
    for _ in range(identity.ignored):
        shared.note(Failed(identity.tenant, now, "session", "ignored"))
    if identity.session is not None:
        most = call.krunch.settings.efficiency.max_conversations
        legends.keep(identity.tenant, identity.session, exchange, most=most)
    metrics.prepared(model, call.call_type, report, reasons, identity.ignored)
    traces.prepared(identity.span, report, symbols)


@_quietly
def ended(call: ProxiedCall, *, usage: Mapping[str, Any] | None, partial: bool) -> None:
    """A reply has gone out, whole or streamed.

    Args:
        call: the request it answers.
        usage: what the provider counted, in the words of the protocol; None if it did not say.
        partial: the stream was broken off, by the upstream or by the client.
    """
    model, tenant = _label(call.model), call.identity.tenant
    told = Usage.of(usage) if usage else Usage(0, 0, 0, 0)
    now = time.time()
    shared = workers(call.krunch)
    counts = (told.input, told.cached, told.written, told.output)
    shared.note(Replied(_name(call), tenant, model, now, partial, *counts, asked=call.counted))
    report = call.exchange.report
    for problem in report.problems:
        shared.note(Failed(tenant, now, f"{problem.plugin}.{problem.hook}", problem.error))
        metrics.failed(f"{problem.plugin}.{problem.hook}", problem.error)
    metrics.ended(model, told, streamed=call.streamed, partial=partial)
    traces.ended(call.identity.span, report, partial=partial)


@_quietly
def failed(stage: Stage, error: BaseException, call: ProxiedCall | None = None) -> None:
    """Something of ours failed; what the client gets is what it would have got without Krunch.

    Args:
        stage: where.
        error: what was raised. Its text may quote a message, so only its class is told.
        call: the request, if it was prepared by then.
    """
    endpoint = "a request" if call is None else call.call_type
    kind = type(error).__name__
    log.warning("%s: stage %r failed with %s; LiteLLM's own goes on as it is", endpoint, stage, kind)
    metrics.failed(stage, kind)
    shared = _workers
    if shared is not None:
        shared.note(Failed("" if call is None else call.identity.tenant, time.time(), stage, kind))


@contextmanager
def counted(stage: Stage) -> Iterator[None]:
    """Go on after what fails in here, and count it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - ours, never the client's
        failed(stage, error)


def forget(reset: Reset) -> None:
    """Have this worker forget what it holds in memory: of a session, of a tenant, or all of it.

    What a store holds of a session is gone already where this is about one: the worker that was asked has removed it.
    """
    for krunch in tuple(_serving):
        if reset.session is not None and krunch.store is None:
            krunch.forget(reset.session, tenant=reset.tenant)  # recent turns in RAM, too
        else:
            krunch.reset(reset.session, tenant=reset.tenant)
    _forget_texts(reset.tenant, reset.session)


def forget_everywhere(krunch: Krunch, tenant: str, session: str) -> bool:
    """Remove every trace of a session: history, statistics, what all workers hold in memory.

    Returns:
        Whether a store had anything of it.

    Raises:
        StoreError: the store could not remove all of it.
    """
    _forget_texts(tenant, session)
    shared = workers(krunch)
    removed = [done for one in tuple(_serving) if (done := one.forget(session, tenant=tenant)) is not None]
    shared.reset(tenant, session)
    return any(done.turns for done in removed)


def _forget_texts(tenant: str | None, session: str | None) -> None:
    """Forget what is held here beside the Krunches: legends, and what expands replies that go on from earlier ones."""
    chains.forget(tenant, session)
    legends.forget(tenant, session)


def _name(call: ProxiedCall) -> bytes:
    """The conversation, hashed; the same in all workers."""
    identity = call.identity
    whole = call.exchange.conversation or (identity.tenant, identity.session)
    return hashlib.blake2b(repr(whole).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _label(model: str) -> str:
    """The model's name as a label: clients can make names up, so their number and length are bounded."""
    model = storable(model[:_LONGEST_NAME])
    if model in _models or len(_models) < _MODELS:
        _models.add(model)
        return model
    return OTHER_MODEL
