"""`krunch proxy`: LiteLLM's proxy with Krunch in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from krunch_plugins.errors import MissingExtra
from krunch_plugins.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CALLBACK = "krunch_litellm.proxy.krunch"
GUARDRAIL = "krunch_litellm.guardrail.KrunchGuardrail"


class Provider(NamedTuple):
    """A provider that the proxy serves if its key is in the environment.

    Attributes:
        name: LiteLLM's prefix for its models.
        key: the variable with the key.
        bases: variables that may hold another address, the first that is set counts.
        models: patterns of model names that need no prefix.
    """

    name: str
    key: str
    bases: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


PROVIDERS = (
    Provider(
        "openai",
        "OPENAI_API_KEY",
        ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        ("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*", "text-embedding-*"),
    ),
    Provider("anthropic", "ANTHROPIC_API_KEY", ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE"), ("claude-*",)),
    Provider("gemini", "GEMINI_API_KEY", models=("gemini-*",)),
    Provider("mistral", "MISTRAL_API_KEY", models=("mistral-*",)),
    Provider("deepseek", "DEEPSEEK_API_KEY", models=("deepseek-*",)),
    Provider("groq", "GROQ_API_KEY"),
    Provider("xai", "XAI_API_KEY", models=("grok-*",)),
    Provider("openrouter", "OPENROUTER_API_KEY"),
)


def run(config: Path | None, port: int | None, workers: int | None, options: Sequence[str]) -> int:
    """Start the proxy; returns its exit code when it has stopped.

    Args:
        config: LiteLLM's config file; None: one from the environment.
        port: where to listen; None: LiteLLM's default.
        workers: how many processes; None: LiteLLM's default.
        options: LiteLLM's own options, handed on.

    Raises:
        SettingsError: a `KRUNCH_*` variable or file holds something that is not allowed.
        MissingExtra: LiteLLM or what its proxy needs is not installed.
    """
    Settings.from_environment()
    try:
        import fastapi  # noqa: F401 - the extra's own part
        import yaml  # type: ignore[import-untyped]  # ships no types
        from litellm.proxy.proxy_cli import run_server
    except ModuleNotFoundError as error:
        raise MissingExtra("proxy", "krunch proxy") from error
    arguments = list(options)
    if port is not None:
        arguments += ["--port", str(port)]
    if workers is not None:
        arguments += ["--num_workers", str(workers)]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_shared_state)
        if config is not None:
            try:
                given = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
            except (OSError, ValueError, yaml.YAMLError) as error:
                typer.echo(f"krunch: {config} cannot be read as YAML: {error}", err=True)
                return 2
            if not isinstance(given, dict):
                typer.echo(f"krunch: {config} is no config of LiteLLM's: its top level is no mapping", err=True)
                return 2
            changed = with_krunch(given)
            path = config if changed is given else stack.enter_context(_beside(config, yaml.safe_dump(changed)))
        else:
            made = from_environment(os.environ, models=not _names_a_model(options))
            if made is None:
                keys = ", ".join(provider.key for provider in PROVIDERS)
                typer.echo(f"krunch: no model to serve; set one of {keys}, or name a --config or a --model", err=True)
                return 2
            if not os.environ.get("LITELLM_MASTER_KEY"):
                arguments = _guarded(arguments)
            path = stack.enter_context(_file(yaml.safe_dump(made)))
        # The server raises the signal again when it has shut down, which would end us before we have cleaned up.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        stopped = run_server.main(["--config", str(path), *arguments], "krunch proxy", standalone_mode=False)
        return stopped if isinstance(stopped, int) else 0


def with_krunch(config: dict[str, Any]) -> dict[str, Any]:
    """A config of LiteLLM's with Krunch's callback in it; `config` itself if Krunch is in it already."""
    guardrails = config.get("guardrails")
    for one in guardrails if isinstance(guardrails, list) else ():
        parameters = one.get("litellm_params") if isinstance(one, dict) else None
        if isinstance(parameters, dict) and parameters.get("guardrail") == GUARDRAIL:
            return config
    settings = config.get("litellm_settings") or {}
    callbacks = settings.get("callbacks") or []
    callbacks = [callbacks] if isinstance(callbacks, str) else list(callbacks)
    if CALLBACK in callbacks:
        return config
    return {**config, "litellm_settings": {**settings, "callbacks": [*callbacks, CALLBACK]}}


def from_environment(environment: Mapping[str, str], *, models: bool = True) -> dict[str, Any] | None:
    """A minimal config: every provider whose key is there, by its prefix and by its models' own names.

    Keys stay in the environment; the config names their variables.

    Args:
        environment: the variables.
        models: whether models are wanted; without them the config only has Krunch in it.

    Returns:
        None if models are wanted and there is no key.
    """
    served = []
    for provider in PROVIDERS if models else ():
        if not environment.get(provider.key):
            continue
        where = {"api_key": f"os.environ/{provider.key}"}
        base = next((name for name in provider.bases if environment.get(name)), None)
        if base is not None:
            where["api_base"] = f"os.environ/{base}"
        served.append({"model_name": f"{provider.name}/*", "litellm_params": {"model": f"{provider.name}/*", **where}})
        served += [
            {"model_name": pattern, "litellm_params": {"model": f"{provider.name}/{pattern}", **where}}
            for pattern in provider.models
        ]
    if models and not served:
        return None
    return with_krunch({"model_list": served} if served else {})


def _guarded(arguments: list[str]) -> list[str]:
    """Where there is no master key: one for this run, and this machine only. Any web page can reach a local port."""
    key = os.environ["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_hex(24)}"
    typer.echo(f"krunch: LITELLM_MASTER_KEY is not set; the key of this run is {key}", err=True)
    return arguments if any(one.startswith("--host") for one in arguments) else [*arguments, "--host", "127.0.0.1"]


def _names_a_model(options: Sequence[str]) -> bool:
    return any(one in {"--model", "-m"} or one.startswith("--model=") for one in options)


@contextlib.contextmanager
def _file(text: str) -> Iterator[Path]:
    """A config in a private folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="krunch-config-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        yield path


@contextlib.contextmanager
def _beside(config: Path, text: str) -> Iterator[Path]:
    """A changed config in a folder that looks like the one of `config`, which stays as it is.

    LiteLLM looks for included files and for modules of the user's own beside the config. (Rejected: a file in the
    user's own folder, which may be read-only.)
    """
    with tempfile.TemporaryDirectory(prefix="krunch-config-") as folder:
        for beside in config.absolute().parent.iterdir():
            if beside.name != config.name:
                link = Path(folder) / beside.name
                try:
                    link.symlink_to(beside)
                except OSError:  # a system without symbolic links
                    if beside.is_file():
                        shutil.copy2(beside, link)
        path = Path(folder) / config.name
        path.write_text(text, encoding="utf-8")
        yield path


def _remove_shared_state() -> None:
    """Remove what this proxy's workers have shared, unless it lies in a store's directory."""
    from krunch_litellm.workers import temporary

    shutil.rmtree(temporary(os.getpid()), ignore_errors=True)
