"""The `krunch` command. The one place that may import everything, and each command imports it when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from krunch_plugins._version import __version__
from krunch_plugins.errors import KrunchError
from krunch_plugins.settings import ContextMode, Profile

__all__ = ["app", "main"]

app = typer.Typer(
    name="krunch",
    help="Krunch makes requests to language models smaller, losslessly. These commands show what it does to yours.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Files = Annotated[
    list[Path],
    typer.Argument(exists=True, dir_okay=False, readable=True, help="Conversations: JSON Lines, OpenAI messages."),
]
File = Annotated[
    Path,
    typer.Argument(exists=True, dir_okay=False, readable=True, help="Conversations: JSON Lines, OpenAI messages."),
]
ModelName = Annotated[str, typer.Option("--model", help="The model; it chooses the tokenizer.")]
ProfileName = Annotated[
    Profile | None, typer.Option("--profile", help="Instead of the one that the settings say.", show_default=False)
]
SessionId = Annotated[str, typer.Argument(help="Id of the session.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Whose sessions.", show_default=False)]


def main() -> None:
    """Run the command. Exit code 0: all well; 1: a check failed or input was skipped; 2: it could not be done."""
    try:
        app()
    except KrunchError as error:
        typer.echo(f"krunch: {error}", err=True)
        sys.exit(2)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback signature
    if wanted:
        typer.echo(f"krunch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo() -> None:
    """Send three recorded conversations through LiteLLM to a local stand-in for the model, and check what comes back.

    Nothing leaves this machine. Exit code 1 if a check fails.
    """
    from krunch_plugins.cli.demo import run

    raise typer.Exit(run())


@app.command()
def replay(
    files: Files,
    model: ModelName = "gpt-4o",
    profile: ProfileName = None,
    json: Annotated[bool, typer.Option("--json", help="Print every figure as one JSON object.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", dir_okay=False, help="Draw tokens and cost per request, plain and sent.", metavar="PNG"),
    ] = None,
) -> None:
    """Measure what Krunch saves on your own conversations. Nothing is sent anywhere.

    Each line of a file is one conversation: a list of messages, or an object with "messages" and, if it likes, "id" and
    "tools". It is played as its client would: one request for each assistant turn, with the whole history so far. Every
    request is restored to check that nothing is lost. Costs are input costs with the prefix caching of a provider.

    Exit code 1 if a line is malformed (it is reported and skipped) or a check fails.
    """
    from krunch_plugins.cli.replay import run

    raise typer.Exit(run(files, model=model, profile=profile, as_json=json, plot=plot))


@app.command()
def show(
    file: File,
    turn: Annotated[int, typer.Option("--turn", "-n", min=0, help="Number of the message, from 0.")],
    conversation: Annotated[int, typer.Option("--conversation", "-c", min=1, help="Line of the file, from 1.")] = 1,
    model: ModelName = "gpt-4o",
    profile: ProfileName = None,
) -> None:
    """Show one message beside what is sent for it, its marks highlighted, and what each of them stands for."""
    from krunch_plugins.cli.show import run

    raise typer.Exit(run(file, turn=turn, line=conversation, model=model, profile=profile))


@app.command()
def restore(file: File) -> None:
    """Rebuild the original messages of requests that were sent, from nothing but the requests.

    Each line of FILE is one request: its messages, or an object with "messages". Prints one request a line.
    """
    from krunch_plugins.cli.restore import run

    raise typer.Exit(run(file))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(dir_okay=False, help="The file to write.")] = Path("krunch.toml"),
) -> None:
    """Write a settings file with every option, its default and what it means. Never overwrites."""
    from krunch_plugins.cli.settings_file import write_settings

    try:
        write_settings(path)
    except FileExistsError:
        typer.echo(f"krunch: {path} exists and was left alone; name another file or remove it first", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"krunch: {path} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {path}")


@app.command()
def plugins() -> None:
    """List the plugins that a Krunch started here would have, and where they come from."""
    from krunch_plugins.cli.plugins import run

    run()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def proxy(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", exists=True, dir_okay=False, readable=True, help="LiteLLM's config file."),
    ] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Default 4000.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes. Default 1.")] = None,
) -> None:
    """Start LiteLLM's proxy with Krunch in it. All other options are LiteLLM's own and handed on.

    The config file is not changed. Without one, every provider is served whose key stands in the environment
    (OPENAI_API_KEY, ANTHROPIC_API_KEY, ...). Without LITELLM_MASTER_KEY it makes one for this run and listens on
    127.0.0.1.
    """
    from krunch_plugins.cli.proxy import run

    raise typer.Exit(run(config, port, workers, context.args))


@app.command()
def sessions(tenant: Tenant = None) -> None:
    """List the recorded sessions: turns, bytes, times, summary."""
    from krunch_plugins.cli import store

    raise typer.Exit(store.sessions(tenant))


@app.command()
def history(session: SessionId, tenant: Tenant = None) -> None:
    """Print the turns of a session, in order."""
    from krunch_plugins.cli import store

    raise typer.Exit(store.history(session, tenant))


@app.command()
def context(
    session: SessionId,
    mode: Annotated[
        ContextMode, typer.Option("--mode", help="The last messages, all, or the last and the old ones that matter.")
    ] = "recent",
    query: Annotated[
        str | None,
        typer.Option("--query", help="What is asked next; without it what the user said last.", show_default=False),
    ] = None,
    budget: Annotated[int, typer.Option("--budget", min=1, help="Tokens.")] = 2000,
    tenant: Tenant = None,
) -> None:
    """Print the messages that a program would go on with: the context of a session."""
    from krunch_plugins.cli.context import run

    raise typer.Exit(run(session, mode, query, budget, tenant))


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for, in plain words.")],
    session: Annotated[str | None, typer.Option("--session", help="Only in this session.", show_default=False)] = None,
    tenant: Tenant = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many turns at most.")] = 10,
) -> None:
    """Find old turns in the history, and say which search plugin found them. Exit code 1 if there are none."""
    from krunch_plugins.cli.search import run

    raise typer.Exit(run(query, session=session, tenant=tenant, k=k))


@app.command()
def topics(
    session: SessionId,
    tenant: Tenant = None,
    size: Annotated[int, typer.Option("--size", min=4, max=200, help="Columns and rows of the grid.")] = 50,
    plot: Annotated[
        Path | None, typer.Option("--plot", dir_okay=False, help="Draw the map into a picture, too.", metavar="PNG")
    ] = None,
) -> None:
    """Show what a session is about: a map on which near meanings are near, warm where it was of late, with names.

    The map is a torus: left meets right, top meets bottom.
    """
    from krunch_plugins.cli.topics import run

    raise typer.Exit(run(session, tenant=tenant, size=size, plot=plot))


@app.command()
def check(
    repair: Annotated[bool, typer.Option("--repair", help="Move what is damaged aside; nothing is deleted.")] = False,
) -> None:
    """Read the whole store and say what is damaged. Exit code 1 if anything is."""
    from krunch_plugins.cli import store

    raise typer.Exit(store.check(repair=repair))


@app.command()
def export(
    session: Annotated[
        str | None, typer.Argument(help="Id of the session; all without it.", show_default=False)
    ] = None,
    tenant: Tenant = None,
) -> None:
    """Write sessions as JSON lines to standard output, losslessly."""
    from krunch_plugins.cli import store

    raise typer.Exit(store.export(session, tenant))


@app.command("import")
def import_(file: File, tenant: Tenant = None) -> None:
    """Store the sessions of a file that `krunch export` wrote."""
    from krunch_plugins.cli import store

    raise typer.Exit(store.import_(file, tenant))


@app.command()
def forget(session: SessionId, tenant: Tenant = None) -> None:
    """Remove every trace of a session, and say what was removed."""
    from krunch_plugins.cli import store

    raise typer.Exit(store.forget(session, tenant))
