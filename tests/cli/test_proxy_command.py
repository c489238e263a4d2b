"""`krunch proxy`: the config that LiteLLM gets. That the proxy runs with it is tested with the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from krunch_plugins.cli import app
from krunch_plugins.cli.proxy import CALLBACK, GUARDRAIL, from_environment, with_krunch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [CALLBACK]),
        ({"litellm_settings": None}, [CALLBACK]),
        ({"litellm_settings": {"callbacks": "prometheus"}}, ["prometheus", CALLBACK]),
        ({"litellm_settings": {"callbacks": ["otel", "prometheus"], "x": 1}}, ["otel", "prometheus", CALLBACK]),
    ],
)
def test_the_callback_is_added_to_a_config(given: dict[str, object], expected: list[str]) -> None:
    """Krunch's callback comes after those that are there; the config that was given does not change."""
    before = repr(given)

    changed = with_krunch({"model_list": [], **given})

    assert changed["litellm_settings"]["callbacks"] == expected
    assert changed["model_list"] == []
    assert repr(given) == before


@pytest.mark.parametrize(
    "given",
    [
        {"litellm_settings": {"callbacks": [CALLBACK]}},
        {"litellm_settings": {"callbacks": CALLBACK}},
        {"guardrails": [{"guardrail_name": "k", "litellm_params": {"guardrail": GUARDRAIL, "mode": "pre_call"}}]},
    ],
)
def test_a_config_with_krunch_in_it_is_used_as_it_is(given: dict[str, object]) -> None:
    """Where Krunch is a callback or a guardrail already, nothing is added."""
    assert with_krunch(given) is given


def test_the_environment_says_which_providers_are_served() -> None:
    """Every provider whose key is set, and no other; keys are named, not copied."""
    made = from_environment(
        {"OPENAI_API_KEY": "secret", "OPENAI_BASE_URL": "http://x", "XAI_API_KEY": "s2", "GROQ_API_KEY": ""}
    )

    assert made is not None
    models = {one["model_name"]: one["litellm_params"] for one in made["model_list"]}
    assert {"openai/*", "gpt-*", "xai/*", "grok-*"} <= set(models)
    assert not any(name.startswith(("groq", "claude", "anthropic")) for name in models)
    assert models["gpt-*"] == {
        "model": "openai/gpt-*",
        "api_key": "os.environ/OPENAI_API_KEY",
        "api_base": "os.environ/OPENAI_BASE_URL",
    }
    assert "secret" not in str(made)
    assert made["litellm_settings"]["callbacks"] == [CALLBACK]


def test_without_any_key_there_is_nothing_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, and what to set."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GROQ_API_KEY", "XAI_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")

    done = CliRunner().invoke(app, ["proxy"])

    assert done.exit_code == 2
    assert "OPENAI_API_KEY" in done.output


def test_a_wrong_setting_ends_it_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are checked first."""
    monkeypatch.setenv("KRUNCH_PROFILE", "tiny")

    done = CliRunner().invoke(app, ["proxy"])

    assert done.exception is not None
    assert "tiny" in str(done.exception)


@pytest.mark.parametrize(("text", "what"), [("a: [b", "cannot be read as YAML"), ("- a\n- b", "no mapping")])
def test_a_config_that_is_none_is_told(tmp_path: Path, text: str, what: str) -> None:
    """Exit code 2 for a file that is no YAML, or no mapping."""
    config = tmp_path / "config.yaml"
    config.write_text(text, encoding="utf-8")

    done = CliRunner().invoke(app, ["proxy", "--config", str(config)])

    assert done.exit_code == 2
    assert what in done.output
