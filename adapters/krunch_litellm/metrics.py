"""Prometheus: counters and histograms in the registry of LiteLLM's `/metrics`, when LiteLLM has that on.

They have no label for keys, users or sessions. With several workers, prometheus_client's multiprocess mode adds them
up, as it does with LiteLLM's own.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import litellm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import Counter, Histogram

    from krunch_plugins import Report, Usage

_LOOK_EVERY = 1.0
"""Seconds after which it is looked anew whether LiteLLM shows metrics: its callbacks are many, and may change."""

_lock = threading.Lock()
_set: _Metrics | None = None
_look_again = 0.0


class _Metrics:
    """The metrics, made once a process: a registry takes each name once."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"krunch_{name}", text, labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"krunch_{name}", text, ("model",), buckets=buckets)

        self.requests = counter("requests", "Requests prepared.", "model", "endpoint")
        self.before = counter("tokens_before", "Tokens of requests without compression.", "model")
        self.after = counter("tokens_after", "Tokens of requests as sent.", "model")
        self.legend = counter("legend_tokens", "Tokens as sent that are legend.", "model")
        self.cost_plain = counter("cost_plain_dollars", "Input cost without compression, estimated.", "model")
        self.cost_sent = counter("cost_sent_dollars", "Input cost as sent, estimated.", "model")
        self.messages = counter("messages", "Messages of requests, by why they were sent as they were.", "reason")
        self.replies = counter("replies", "Replies.", "model", "outcome")
        self.input = counter("provider_input_tokens", "Input tokens as the provider counted them.", "model")
        self.cached = counter("provider_cached_tokens", "Input tokens read from the provider's cache.", "model")
        self.written = counter("provider_written_tokens", "Input tokens written to the provider's cache.", "model")
        self.output = counter("provider_output_tokens", "Output tokens as the provider counted them.", "model")
        self.failures = counter("failures", "What went wrong in Krunch; the call went on.", "place", "error")
        self.ignored = counter("ignored_sessions", "Session ids that cannot be used.")
        self.seconds = histogram(
            "prepare_seconds",
            "Time to compress a request.",
            (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
        )
        self.ratio = histogram(
            "net_ratio", "Share of a request's tokens that was saved.", (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
        )


def prepared(model: str, endpoint: str, report: Report, reasons: Mapping[str, int], ignored: int) -> None:
    """Count a request."""
    if (known := _metrics()) is None:
        return
    known.requests.labels(model, endpoint).inc()
    known.before.labels(model).inc(report.tokens_before)
    known.after.labels(model).inc(report.tokens_after)
    known.legend.labels(model).inc(report.overhead_tokens)
    if report.cost is not None:
        known.cost_plain.labels(model).inc(report.cost.plain)
        known.cost_sent.labels(model).inc(report.cost.sent)
    for reason, count in reasons.items():
        known.messages.labels(reason).inc(count)
    known.ignored.inc(ignored)
    known.seconds.labels(model).observe(report.milliseconds / 1e3)
    known.ratio.labels(model).observe(report.net_ratio)


def ended(model: str, told: Usage, *, streamed: bool, partial: bool) -> None:
    """Count a reply."""
    if (known := _metrics()) is None:
        return
    known.replies.labels(model, "broken" if partial else "streamed" if streamed else "whole").inc()
    known.input.labels(model).inc(told.input)
    known.cached.labels(model).inc(told.cached)
    known.written.labels(model).inc(told.written)
    known.output.labels(model).inc(told.output)


def failed(place: str, error: str) -> None:
    """Count what went wrong."""
    if (known := _metrics()) is not None:
        known.failures.labels(place, error).inc()


def _metrics() -> _Metrics | None:
    """The metrics, if LiteLLM shows any."""
    global _set, _look_again  # noqa: PLW0603 - one a process is the point
    if _set is not None or time.monotonic() < _look_again:
        return _set
    with _lock:
        if _set is None and _is_on():
            _set = _Metrics()
        _look_again = time.monotonic() + _LOOK_EVERY
    return _set


def _is_on() -> bool:
    """Whether LiteLLM's Prometheus callback is registered: by name, or as an object."""
    registered = [*litellm.callbacks, *litellm.success_callback, *litellm.failure_callback]
    return any(one == "prometheus" or type(one).__name__ == "PrometheusLogger" for one in registered)
