"""`captionlite env`: what to put into a bug report."""

import json

import click


@click.command("env")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Show this machine, its interpreter and the versions that matter."""
    from captionlite.runtime.environment import describe_environment

    found = describe_environment()
    if as_json:
        click.echo(json.dumps(found))
        return
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
