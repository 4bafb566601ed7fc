"""`captionlite env`: what to put into a bug report."""

import json
from typing import TYPE_CHECKING, Any

import click

from captionlite.runtime.commands.options import delegate_option

if TYPE_CHECKING:
    from captionlite.runtime.delegates import DelegateSpec


@click.command("env")
@delegate_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(delegate: "DelegateSpec | None", as_json: bool) -> None:
    """Show this machine, its interpreter and the versions that matter.

    With --delegate also whether that library can be loaded; which ops of a bundle it takes and whether it computes them
    rightly is what `captionlite verify --delegate` tells.
    """
    from captionlite.runtime.environment import describe_environment

    found = describe_environment()
    if delegate is not None:
        from captionlite.runtime.delegates import describe_delegate
        from captionlite.runtime.interpreter import without_chatter

        with without_chatter():
            found["delegate"] = describe_delegate(delegate)
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found)
    if delegate is not None and delegate.required and not found["delegate"]["loaded"]:
        raise SystemExit(1)


def _print(found: dict[str, Any]) -> None:
    interpreter = found["interpreter"]
    memory = found["memory_available_bytes"]
    click.echo(f"captionlite  {found['captionlite']}")
    click.echo(f"python       {found['python']} ({found['implementation']}, {found['bits']} bits)")
    click.echo(f"platform     {found['platform']}")
    click.echo(f"device       {found['device'] or found['machine']}")
    click.echo(f"cpu          {found['cpu'] or 'unknown'}, {found['cores']} cores")
    click.echo(f"cpu features {' '.join(found['cpu_features']) or 'unknown'}")
    click.echo(f"memory       {'unknown' if memory is None else f'{memory / 1e6:.0f} MB available'}")
    click.echo(f"interpreter  {interpreter['name'] or interpreter['error']} {interpreter['version'] or ''}".rstrip())
    click.echo(f"numpy        {found['numpy']}")
    click.echo(f"pillow       {found['pillow']}")
    if "delegate" in found:
        delegate = found["delegate"]
        told = f"loads ({delegate['file'] or delegate['library']})" if delegate["loaded"] else delegate["error"]
        click.echo(f"delegate     {told}")
