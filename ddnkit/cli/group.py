"""The command group: finds commands without importing them, and turns errors into exit statuses."""

from __future__ import annotations

import errno
import importlib
import sys
from typing import Any

import click

from .. import __version__
from ..errors import DdnkitError, nearest_choice

#: Command: where it is, and its line in the help, here so that the help imports none of them.
COMMANDS = {
    "run": ("ddnkit.cli.run:run", "Run a recipe: its variants and seeds, then a report."),
    "check": ("ddnkit.cli.check:check", "Check a node's solution and every form of its gradient."),
    "list": ("ddnkit.cli.list:list_", "List plugins by group, and the shipped recipes."),
    "describe": ("ddnkit.cli.describe:describe", "Describe a plugin or recipe, with its settings."),
    "evaluate": ("ddnkit.cli.evaluate:evaluate", "Measure the models of a run again."),
    "report": ("ddnkit.cli.report:report", "Rebuild the report of runs and compare them."),
    "new": ("ddnkit.cli.new:new", "Write a file to start from: ddnkit new node NAME."),
    "bench": ("ddnkit.cli.bench:bench", "Compare ways to do the same work, in one run."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when used, and the one place that reports errors."""

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
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that is gone is noticed here, not while shutting down
            return result
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params["debug"] or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise  # click ends quietly when nobody reads the output any more
            if isinstance(error, DdnkitError):
                click.echo("error: " + str(error).replace("\n", "\n       "), err=True)
                ctx.exit(error.exit_status)
            what = f"{type(error).__name__}: {error}"
            click.echo(
                f"error: unexpected {what}; for the traceback: ddnkit --debug "
                f"{ctx.invoked_subcommand} ...",
                err=True,
            )
            ctx.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ddnkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Any argmin as a PyTorch layer whose gradient you can trust."""
