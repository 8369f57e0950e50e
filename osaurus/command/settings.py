"""The settings as options of subcommands, and the subcommand that shows them: what each is, and who says so."""

from typing import Any

import click

from ..settings import FLAGS, SECRETS, Setting, table
from ..sources import BadSetting, Found, Sources, did_you_mean
from .surroundings import Surroundings, pass_surroundings
from .terminal import examples, print_json, print_table, printable


def setting_options() -> list[click.Parameter]:
    """Return the settings as options, and the one that names their file."""
    return [
        click.Option(["--config"], help="A TOML file with settings. If not given: ~/.osaurus/config.toml."),
        *(
            click.Option([setting.option, setting.name], is_flag=True, help=setting.meaning)
            if setting.name in FLAGS
            else click.Option([setting.option, setting.name], multiple=setting.name == "listen", help=setting.meaning)
            for setting in table()
        ),
    ]


def given_options(options: dict[str, Any]) -> dict[str, str | list[str]]:
    """Return those of the options that were given, as `Sources` takes them."""
    return {
        name: "on" if value is True else list(value) if isinstance(value, tuple) else str(value)
        for name, value in options.items()
        if value
    }


@pass_surroundings
def _show(surroundings: Surroundings, /, name: str | None, as_json: bool, **options: Any) -> None:
    """Show every setting, or one: its value, and where that comes from.

    It is what a server would have that is started here and now, with these options.
    """
    sources = Sources(given_options(options), surroundings.environ)
    try:
        found = sources.find()
    except BadSetting as error:
        raise click.ClickException(str(error)) from error
    for warning in sources.unknown_variables():
        click.echo(printable(f"Warning: {warning}"), err=True)
    chosen = [setting for setting in table() if name in (None, setting.name)]
    if not chosen:
        known = [setting.name for setting in table()]
        raise click.UsageError(f"{name} is no setting{did_you_mean(str(name), known)}")
    if as_json:
        rows = [_described(setting, found) for setting in chosen]
        print_json(rows if name is None else rows[0])
    elif name is not None:
        [setting] = chosen
        click.echo(printable(f"{setting.name} = {_shown(setting, found)}, from {_source(setting, found)}"))
        click.echo(setting.meaning)
        click.echo(f"{setting.kind.name}; {setting.name} in TOML, {setting.variable}, {setting.option}")
        click.echo("Changes while the server runs (SIGHUP)." if setting.live else "Changes with a restart.")
    else:
        print_table(
            surroundings.out,
            ("SETTING", "VALUE", "FROM"),
            [(setting.name, _shown(setting, found), _source(setting, found)) for setting in chosen],
        )
        if found.file is not None:
            surroundings.err.print(f"The file is {printable(str(found.file))}", soft_wrap=True)


def _shown(setting: Setting, found: Found) -> str:
    return setting.shown(getattr(found.settings, setting.name))


def _source(setting: Setting, found: Found) -> str:
    """Return where a value comes from, as people read it."""
    given = found.given.get(setting.name)
    if given is None:
        return "default"
    return "file" if given.source == "file" else f"{given.source} {given.spelling}"


def _described(setting: Setting, found: Found) -> dict[str, Any]:
    value, given = getattr(found.settings, setting.name), found.given.get(setting.name)
    secret = setting.name in SECRETS
    return {
        "name": setting.name,
        "type": setting.kind.name,
        "value": None if value is None or secret else setting.kind.write(value),
        **({"set": bool(value)} if secret else {}),
        "source": given.source if given else "default",
        "file": str(found.file) if given and given.source == "file" else None,
        "variable": setting.variable,
        "option": setting.option,
        "live": setting.live,
        "meaning": setting.meaning,
    }


show_settings = click.Command(
    "settings",
    callback=_show,
    params=[
        click.Argument(["name"], required=False),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
        *setting_options(),
    ],
    help=_show.__doc__,
    epilog=examples(
        "osaurus settings", "osaurus settings max_concurrent", "osaurus settings --json --config test.toml"
    ),
)
