"""`captionlite service`: keep `captionlite serve` running, by systemd."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from captionlite.runtime.errors import CaptionliteError, OptionsError, OutputError

SYSTEM = Path("/etc/systemd/system")
USER = Path(".config/systemd/user")  # in the user's home


@click.group("service")
def command() -> None:
    """Run `captionlite serve` as a service of systemd: at every start of the machine, restarted when it fails.

    \b
    captionlite service show                         # look at the unit first
    sudo captionlite service install                 # then run the systemctl lines that it prints
    captionlite service install --user -- --port 9000 --beams 3      # yours alone; what follows -- is serve's
    """


def _name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,60}", value):
        raise click.BadParameter("expected small letters, digits, - and _.")
    return value


def _of_unit(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option(
            "--into", type=click.Path(file_okay=False, path_type=Path), help="Folder of units, instead of systemd's."
        ),
        click.option("--name", default="captionlite", show_default=True, callback=_name, help="Name of the unit."),
        click.option("--user", is_flag=True, help="A service of your own systemd, not the machine's."),
    ):
        function = option(function)
    return function


def _of_service(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.argument("serve_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE OPTIONS...]"),
        click.option("--run-as", metavar="USER", help="User to run as.  [default: one made up by systemd]"),
    ):
        function = option(function)
    return function


@command.command("show")
@_of_unit
@_of_service
def show(
    user: bool, name: str, into: Path | None, as_json: bool, run_as: str | None, serve_options: tuple[str, ...]
) -> None:
    """Print the unit that `install` would write."""
    text = _unit(user, run_as, serve_options)
    if as_json:
        click.echo(json.dumps({"path": str(_path(user, name, into)), "unit": text}))
    else:
        click.echo(text, nl=False)


@command.command("install")
@_of_unit
@_of_service
@click.option("--force", is_flag=True, help="Overwrite a unit that somebody else wrote.")
def install(
    user: bool,
    name: str,
    into: Path | None,
    as_json: bool,
    run_as: str | None,
    serve_options: tuple[str, ...],
    force: bool,
) -> None:
    """Write the unit, and say what to run next. It starts nothing by itself."""
    from captionlite.runtime.files import write_bytes_atomically
    from captionlite.runtime.service.unit import MARK

    text = _unit(user, run_as, serve_options)
    path = _path(user, name, into)
    _check_ours(path, MARK, force)
    try:
        if user:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, text.encode())
        path.chmod(0o644)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}). {_permission(user)}") from None
    systemctl = "systemctl --user" if user else "sudo systemctl"
    then = [f"{systemctl} daemon-reload", f"{systemctl} enable --now {name}", f"{systemctl} status {name}"]
    if user:
        then.append("loginctl enable-linger  # to run while you are not logged in")
    _tell(as_json, {"path": str(path), "next": then}, f"Wrote {path}.", then)


@command.command("uninstall")
@_of_unit
def uninstall(user: bool, name: str, into: Path | None, as_json: bool) -> None:
    """Remove the unit, and say what to run next."""
    from captionlite.runtime.service.unit import MARK

    path = _path(user, name, into)
    if not path.is_file():
        raise CaptionliteError(f"{path}: there is no such unit. Name it with --name, or its folder with --into.")
    _check_ours(path, MARK, force=False)
    wanted = path.parent / f"{'default' if user else 'multi-user'}.target.wants" / path.name  # what `enable` made
    try:
        if wanted.is_symlink():
            wanted.unlink()
        path.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed ({error.strerror}). {_permission(user)}") from None
    systemctl = "systemctl --user" if user else "sudo systemctl"
    then = [f"{systemctl} stop {name}", f"{systemctl} daemon-reload"]
    _tell(as_json, {"path": str(path), "next": then}, f"Removed {path}.", then)


def _tell(as_json: bool, record: dict[str, Any], what: str, then: list[str]) -> None:
    if as_json:
        click.echo(json.dumps(record))
    else:
        click.echo("\n".join([what, "Now run:", *(f"    {line}" for line in then)]))


def _path(user: bool, name: str, into: Path | None) -> Path:
    return (into or (Path.home() / USER if user else SYSTEM)) / f"{name}.service"


def _permission(user: bool) -> str:
    if user:
        return "Check the folder's permissions."
    return f"Run it as root (`sudo {_program()[0]} service ...`), or with --user for a service of your own."


def _check_ours(path: Path, mark: str, force: bool) -> None:
    try:
        found = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}).") from None
    if not found.startswith(mark) and not force:
        raise OutputError(f"{path}: `captionlite service install` did not write this. Choose another --name.")


def _program() -> list[str]:
    script = Path(sys.executable).with_name("captionlite")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "captionlite.runtime.cli"]


def _unit(user: bool, run_as: str | None, serve_options: tuple[str, ...]) -> str:
    """The text of the unit for these options of `serve`. Raises CaptionliteError for what would not start."""
    import uvicorn  # noqa: F401  # a service that could not start is not installed

    import captionlite.runtime
    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.commands.serve import command as serve
    from captionlite.runtime.commands.serve import limits_of
    from captionlite.runtime.service.access import VARIABLE, Access, is_local, read_token
    from captionlite.runtime.service.unit import Unit, check_reachable

    if user and run_as is not None:
        raise click.UsageError("--user runs as you; leave out --run-as.")
    given = serve.make_context("captionlite serve", list(serve_options)).params
    limits = limits_of(given)
    local, token_file = is_local(given["host"]), given["token_file"]
    if token_file is not None:
        token_file = token_file.absolute()
        read_token(token_file)
    elif not local:
        raise OptionsError(
            f"--host {given['host']}: others can connect there, so a token is needed, and a service has no "
            f"{VARIABLE}. Give --token-file FILE after --."
        )
    Access.of(given["host"], read_token(token_file) if token_file else None, given["allow_host"])
    bundle = Bundle.open(given["bundle_name"])
    arguments = list(serve_options)
    place = bundle.location.absolute()
    if given["bundle_name"] != "default":
        arguments += ["--bundle", str(place)]  # the last one counts; the service stands elsewhere, as somebody else
    if token_file is not None and user:
        arguments += ["--token-file", str(token_file)]
    needed = [Path(sys.prefix), Path(sys.base_prefix), Path(captionlite.runtime.__file__).parent, place]
    needed = sorted({path for near in needed for path in (near.absolute(), near.resolve())} - {Path("/usr")})
    if not user and run_as is None:
        check_reachable(needed)
    return Unit(
        command=[*_program(), "serve", *arguments],
        limits=limits,
        local=local,
        port=given["port"],
        needed=needed,
        token_file=token_file,
        delegate=given["delegate"] is not None,
        user=user,
        run_as=run_as,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    ).text()
