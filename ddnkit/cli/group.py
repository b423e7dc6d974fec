"""The command group: finds commands without importing them, and turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from .. import __version__
from ..errors import (
    DdnkitError,
    InputError,
    nearest_choice,
    plain,
    shortened,
    warnings_in_a_line,
)
from ..importing import describe_error, place

#: Command: where it is, and its line in the help, here so that the help imports none of them.
COMMANDS = {
    "run": ("ddnkit.cli.run:run", "Run a recipe: its variants and seeds, then a report."),
    "check": (
        "ddnkit.cli.check:check",
        "Check the solutions of a node and every form of its gradient.",
    ),
    "list": ("ddnkit.cli.list:list_", "List plugins by group, and the shipped recipes."),
    "describe": ("ddnkit.cli.describe:describe", "Describe a plugin or recipe, with its settings."),
    "evaluate": ("ddnkit.cli.evaluate:evaluate", "Measure the models of a run again."),
    "report": ("ddnkit.cli.report:report", "Rebuild the reports of runs and compare the runs."),
    "new": ("ddnkit.cli.new:new", "Write a file to start from: ddnkit new node NAME."),
    "bench": (
        "ddnkit.cli.bench:bench",
        "Compare the time and memory of several ways to do the same work.",
    ),
}


#: The system's ways to say that there is no room: on the disk, for this user, in this file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Where a context keeps the arguments as they were typed.
_GIVEN = "ddnkit.given"


class LazyGroup(click.Group):
    """A group whose commands are imported when used, and the one place that reports errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what is no text at once: no name, number or file that is asked for has it."""
        for given in args:
            if "\0" in given or not _is_text(given):
                what = "a NUL byte" if "\0" in given else "bytes that are not UTF-8"
                raise click.UsageError(f"the argument {plain(ascii(given), 100)} has {what}", ctx)
        ctx.meta[_GIVEN] = tuple(args)
        with _shorten_usage_errors(args):
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` begin with; an unknown one names the nearest."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = nearest_choice(args[0], COMMANDS)
            raise click.UsageError(f"no command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' lines in the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes one message on stderr and an exit status."""
        from .. import registry

        registry.find()  # before a command imports what looks for extensions too
        previous = registry.tell_by(lambda text: click.echo(f"warning: {text}", err=True))
        try:
            with warnings_in_a_line():
                return self._invoke(ctx)
        finally:
            registry.tell_by(previous)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            with _shorten_usage_errors(ctx.meta[_GIVEN]):
                result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that is gone is noticed here, not while shutting down
            return result
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BaseException as error:  # a plugin's code may raise SystemExit, or one of its own
            if ctx.params["debug"] or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise  # click ends quietly when nobody reads the output any more
            if isinstance(error, DdnkitError):
                text = shortened(str(error), ctx.meta[_GIVEN])
                click.echo("error: " + text.replace("\n", "\n       "), err=True)
                ctx.exit(error.exit_status)
            given = _given_path(error, ctx.meta[_GIVEN])
            if given is not None:
                click.echo(f"error: {shortened(given)}: {_reason(error)}", err=True)
                ctx.exit(InputError.exit_status)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                _drop_output()
                where = f"{shortened(str(error.filename))}: " if error.filename else ""
                click.echo(f"error: nothing more can be written: {where}{_reason(error)}", err=True)
                ctx.exit(InputError.exit_status)
            click.echo(
                f"error: unexpected {describe_error(error)} at {place(error)}; "
                f"for the traceback: ddnkit --debug {ctx.invoked_subcommand} ...",
                err=True,
            )
            ctx.exit(1)


@contextlib.contextmanager
def _shorten_usage_errors(given: Iterable[str]) -> Iterator[None]:
    """Have click's own errors repeat no more of what was given than one can read."""
    try:
        yield
    except click.UsageError as error:
        text = shortened(error.format_message(), given)
        if text == error.format_message():
            raise
        raise click.UsageError(text, error.ctx) from error


def _is_text(given: str) -> bool:
    try:
        given.encode()
    except UnicodeEncodeError:  # bytes of another encoding are halves of characters in Python
        return False
    return True


def _given_path(error: BaseException, given: tuple[str, ...]) -> str | None:
    """The path of an argument that the system refused: it, or a file below it; None for others."""
    if not isinstance(error, OSError):
        return None
    for name in (error.filename, error.filename2):
        if isinstance(name, str | os.PathLike):
            refused = os.path.abspath(name)
            for text in given:
                # KEY=PATH, and PATH:NAME
                parts = (text, text.partition("=")[2], text.rpartition(":")[0])
                for path in filter(None, parts):
                    above = os.path.abspath(path)
                    if refused == above or refused.startswith(above.rstrip(os.sep) + os.sep):
                        return plain(os.fspath(name), 200)
    return None


def _drop_output() -> None:
    """Let what standard output still holds go nowhere: it has no room, and Python would try again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or describe_error(error)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="ddnkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Any argmin as a PyTorch layer whose gradient you can trust."""
