"""What the pages of the statistics say, made of what was counted."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from krunch_litellm.entries import HOUR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from krunch_litellm.figures import Summary


def totals(counted: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over rows of conversations, models or hours, and what follows from them."""
    rows = list(counted)
    before, after = _sum(rows, "tokens_before"), _sum(rows, "tokens_after")
    plain, sent = _sum(rows, "cost_plain"), _sum(rows, "cost_sent")
    read, asked = _sum(rows, "cached_tokens"), _sum(rows, "input_tokens")
    return {
        "requests": _sum(rows, "requests"),
        "replies": _sum(rows, "replies"),
        "broken_replies": _sum(rows, "partial"),
        "tokens_before": before,
        "tokens_after": after,
        "tokens_saved": before - after,
        "net_efficiency": (before - after) / before if before else 0.0,
        "cost_plain": plain,
        "cost_sent": sent,
        "cost_saved": plain - sent,
        "provider": {
            "input_tokens": asked,
            "cached_tokens": read,
            "cache_hit_rate": read / asked if asked else 0.0,
            "written_tokens": _sum(rows, "written_tokens"),
            "output_tokens": _sum(rows, "output_tokens"),
        },
    }


def by_model(summary: Summary) -> dict[str, Any]:
    """The totals of each model, and of each of its hours."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary.models:
        grouped.setdefault(row["model"], []).append(row)
    hours: dict[str, list[dict[str, Any]]] = {}
    for row in summary.hours:
        hours.setdefault(row["model"], []).append({"hour": _time(row["hour"] * HOUR), **totals([row])})
    return {model: {**totals(same), "series": hours.get(model, [])} for model, same in grouped.items()}


def conversation(row: Mapping[str, Any], series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was counted of a conversation: its totals, and each request of a series."""
    return {
        "session": row["session"],
        "tenant": row["tenant"],
        "model": row["model"],
        "last_used": _time(row["used"]),
        **totals([row]),
        "symbols": row["symbols"],
        "reasons": json.loads(row["reasons"]),
        "series": [
            {
                "request": one["number"],
                "tokens_before": one["tokens_before"],
                "tokens_after": one["tokens_after"],
                "overhead_tokens": one["overhead_tokens"],
                "net_efficiency": net(one),
                "symbols": one["symbols"],
            }
            for one in series
        ],
    }


def reasons(conversations: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many messages were sent as they were, for which reason."""
    total: Counter[str] = Counter()
    for one in conversations:
        total.update(json.loads(one["reasons"]))
    return dict(total)


def errors(summary: Summary) -> list[dict[str, Any]]:
    """What went wrong, how often."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in summary.problems:
        counts[one["place"], one["error"]] += one["count"]
    return [{"place": place, "error": error, "count": count} for (place, error), count in sorted(counts.items())]


def net(one: Mapping[str, Any]) -> float:
    """The part of a request's tokens that was saved."""
    before = one["tokens_before"]
    return float((before - one["tokens_after"]) / before) if before else 0.0


def _sum(rows: Iterable[Mapping[str, Any]], column: str) -> Any:  # noqa: ANN401 - int or float, as the column is
    return sum(row[column] for row in rows)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).isoformat()
