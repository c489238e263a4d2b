"""OpenTelemetry: attributes on the span of the request. Figures only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krunch_plugins import Report


def prepared(span: Any, report: Report, symbols: int) -> None:  # noqa: ANN401 - OpenTelemetry's, which may not be installed
    """What was made of a request.

    Args:
        span: the span that LiteLLM has opened, or None: then it is the current one.
        report: the request's figures.
        symbols: definitions that it carries.
    """
    _set(
        span,
        {
            "krunch.mode": report.mode,
            "krunch.messages": len(report.messages),
            "krunch.tokens.before": report.tokens_before,
            "krunch.tokens.after": report.tokens_after,
            "krunch.tokens.legend": report.overhead_tokens,
            "krunch.symbols": symbols,
            "krunch.milliseconds": report.milliseconds,
        },
    )


def ended(span: Any, report: Report, *, partial: bool) -> None:  # noqa: ANN401 - as above
    """What came of its reply."""
    _set(span, {"krunch.symbols_expanded": report.symbols_expanded, "krunch.partial": partial})


def _set(span: Any, attributes: dict[str, str | int | float | bool]) -> None:  # noqa: ANN401 - as above
    trace = sys.modules.get("opentelemetry.trace")  # whoever traces has imported it
    if span is None and trace is not None:
        span = trace.get_current_span()
    if span is not None and span.is_recording():
        span.set_attributes(attributes)
