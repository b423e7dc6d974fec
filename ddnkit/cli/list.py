"""``ddnkit list``: what there is to choose from, at once."""

from __future__ import annotations

import click

from .. import registry
from ..errors import InputError, nearest_choice, plain
from ..recipe.find import shipped_recipes

_RECIPES = "recipes"


@click.command(name="list")
@click.argument("group", required=False)
def list_(group: str | None) -> None:
    """List the plugins of GROUP, or of all groups, and the shipped recipes.

    Plugins of other packages are imported, and those that do not work are listed as ignored.
    """
    if group is not None and group not in (*registry.GROUPS, _RECIPES):
        hint = nearest_choice(group, [*registry.GROUPS, _RECIPES])
        raise InputError(f"no group '{group}'.{hint}")
    registry.tell_by(lambda text: None)  # this command has a section for it
    failed = registry.check_foreign()
    for name in registry.GROUPS:
        if group in (None, name):
            _section(
                name, [_line(plugin) for plugin in registry.plugins(name) if plugin not in failed]
            )
    if group in (None, _RECIPES):
        _section(_RECIPES, list(shipped_recipes()))
    aside = [f"{distribution}: {reason}" for distribution, reason in registry.set_aside().items()]
    aside += [
        f"{plugin}: {reason}" for plugin, reason in failed.items() if group in (None, plugin.group)
    ]
    if aside:
        _section("ignored", aside)


def _section(title: str, lines: list[str]) -> None:
    click.echo(title)
    for line in lines or ["(none)"]:
        click.echo(f"  {line}")


def _line(plugin: registry.Plugin) -> str:
    if plugin.built_in:
        return plugin.name
    # A foreign plugin has been imported by now: its first line costs nothing.
    own = registry.own_text(registry.get(plugin.group, plugin.name))
    first = plain(own.partition("\n")[0], 200)
    return f"{plugin.name}  (from {plugin.distribution})  {first}".rstrip()
