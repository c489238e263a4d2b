"""Tools that are run before the reply comes back, by the provider or by LiteLLM itself.

They get what the model wrote, and nobody could expand it before: a file would be written with symbols in it. So a
request that offers one goes out as it came. Tools that only look something up may get a symbol, which finds less and
harms nothing, so they are not among these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

REASON = "hosted_tools"
"""What clients and statistics are told."""

_ACTING = ("mcp", "codeexecution", "codeinterpreter", "imagegeneration", "urlcontext", "webfetch")


def acts_elsewhere(arguments: Mapping[str, Any]) -> bool:
    """Whether a request offers the model a tool that does something, and that is not run by the client."""
    tools = arguments.get("tools")
    return bool(arguments.get("mcp_servers")) or (isinstance(tools, (list, tuple)) and any(map(_acts, tools)))


def _acts(tool: Any) -> bool:  # noqa: ANN401 - whatever a client sends
    if not isinstance(tool, dict):
        return False
    kind = tool.get("type")
    if kind == "shell":
        environment = tool.get("environment")
        return isinstance(environment, dict) and environment.get("type") != "local"
    names = [kind] if isinstance(kind, str) else tool  # Gemini's have a name for a key instead of a type
    return any(str(name).replace("_", "").lower().startswith(_ACTING) for name in names)
