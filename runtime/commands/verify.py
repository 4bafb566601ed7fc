"""`captionlite verify BUNDLE`: the golden vectors on this machine."""

import json
from typing import TYPE_CHECKING

import click

from captionlite.runtime.commands.options import delegate_option, tell_delegate

if TYPE_CHECKING:
    from captionlite.runtime.delegates import DelegateSpec


@click.command("verify")
@click.argument("bundle_name", metavar="[BUNDLE]", default="default")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@delegate_option
@click.option("--record", is_flag=True, help="Add this interpreter to those that the bundle is proven on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle_name: str, threads: int | None, delegate: "DelegateSpec | None", record: bool, as_json: bool
) -> None:
    """Check that a bundle computes here what it computed where it was made.

    Its golden photographs are encoded and decoded; every tensor must come within the bundle's own tolerance and the
    captions must be equal. The exit code is 1 where they are not.

    With --record the manifest of a bundle directory that passes names this interpreter, its version and this kind of
    machine as proven: opening it here then needs no check of its own.

    With --delegate the encoder goes through that delegate or nowhere: there is no falling back to the CPU here.
    """
    from dataclasses import replace

    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.interpreter import without_chatter
    from captionlite.runtime.selfcheck import proven_here, record_proof, require_directory
    from captionlite.runtime.verify import verify

    if record and delegate is not None:
        raise click.UsageError("--record is about the interpreter; a delegate proves itself wherever it is used.")
    bundle = Bundle.open(bundle_name)
    if record:
        require_directory(bundle)
    with without_chatter():
        captioner = Captioner(bundle, threads, delegate and replace(delegate, required=True))
        report = verify(bundle, threads, captioner)
    tell_delegate(captioner)
    recorded = record and report.passed and record_proof(bundle)
    if as_json:
        found = {"bundle": str(bundle.location), **report.to_json(), **({"recorded": recorded} if record else {})}
        if captioner.delegation is not None:
            found["delegate"] = captioner.delegation.to_json()
        click.echo(json.dumps(found))
    else:
        for check in report.tensors:
            verdict = "ok" if check.passed else "FAILED"
            click.echo(f"{check.name}: relative error {check.error:.2e}, tolerance {report.tolerance:.2e}, {verdict}")
        click.echo(f"captions: {report.tokens_equal} of {report.photographs} equal token by token")
        for problem in report.token_problems:
            click.echo(f"  {problem}")
        if recorded:
            click.echo(f"recorded as proven on {proven_here()[0]}")
        elif record:
            click.echo("proven here already" if report.passed else "nothing is recorded")
        who = "this machine" if delegate is None else "this delegate"
        click.echo("verified" if report.passed else f"FAILED: {who} does not compute what the bundle promises.")
    if not report.passed:
        raise SystemExit(1)
