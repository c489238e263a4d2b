"""A program with Anthropic's SDK, through the proxy: it only has another address.

krunch proxy --config examples/litellm/config.yaml
LITELLM_MASTER_KEY=... python examples/litellm/anthropic_client.py
"""

from __future__ import annotations

import os

import anthropic

client = anthropic.Anthropic(
    base_url=os.environ.get("LITELLM_PROXY", "http://127.0.0.1:4000"),
    api_key=os.environ["LITELLM_MASTER_KEY"],
    default_headers={"X-Session-ID": "incident 17"},
)
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim", "Lou")
REPORT = "; ".join(f"{name} says the billing service was refused by /srv/billing/app.py" for name in NAMES)

with client.messages.stream(
    model="claude-sonnet-4-5",
    max_tokens=500,
    system="You are a careful operator.",
    messages=[{"role": "user", "content": f"What is wrong here? {REPORT}"}],
) as stream:
    for text in stream.text_stream:
        print(text, end="")
print()
before, after = (stream.response.headers.get(f"x-krunch-tokens-{when}") for when in ("before", "after"))
print(f"{before} tokens, {after} sent")
