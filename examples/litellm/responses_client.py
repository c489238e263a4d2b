"""A program with OpenAI's Responses, through the proxy: it only has another address.

krunch proxy --config examples/litellm/config.yaml
LITELLM_MASTER_KEY=... python examples/litellm/responses_client.py
"""

from __future__ import annotations

import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("LITELLM_PROXY", "http://127.0.0.1:4000") + "/v1",
    api_key=os.environ["LITELLM_MASTER_KEY"],
    default_headers={"X-Session-ID": "incident 17"},
)
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim", "Lou")
REPORT = "; ".join(f"{name} says the billing service was refused by /srv/billing/app.py" for name in NAMES)

answer = client.responses.with_raw_response.create(
    model="gpt-4o", instructions="You are a careful operator.", input=f"What is wrong here? {REPORT}"
)
print(answer.parse().output_text)
before, after = (answer.headers.get(f"x-krunch-tokens-{when}") for when in ("before", "after"))
print(f"{before} tokens, {after} sent")
