"""A small model server on loopback, for the demo and for tests: real HTTP, three protocols, replies from a function.

It stands in for the model and for nothing else: what a framework sends travels through that framework's own client
and a real socket, is kept, and can be looked at afterwards.

    with Upstream(lambda body: Answer("Hello")) as upstream:
        litellm.completion(model="openai/gpt-4o", api_base=upstream.url, api_key="none", messages=[...])
        upstream.requests[0]["messages"]

It speaks OpenAI's chat completions and responses and Anthropic's messages, plain and streamed, and answers completions
and embeddings.
"""

from krunch_plugins.upstream.answers import Answer, ToolCall, echo
from krunch_plugins.upstream.server import Received, Upstream

__all__ = ["Answer", "Received", "ToolCall", "Upstream", "echo"]
