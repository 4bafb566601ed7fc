"""`captionlite verify BUNDLE`: the golden vectors on this machine."""

import json

import click


@click.command("verify")
@click.argument("bundle_name", metavar="[BUNDLE]", default="default")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@click.option("--record", is_flag=True, help="Add this interpreter to those that the bundle is proven on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle_name: str, threads: int | None, record: bool, as_json: bool) -> None:
    """Check that a bundle computes here what it computed where it was made.

    Its golden photographs are encoded and decoded; every tensor must come within the bundle's own tolerance and the
    captions must be equal. The exit code is 1 where they are not.

    With --record the manifest of a bundle directory that passes names this interpreter, its version and this kind of
    machine as proven: opening it here then needs no check of its own.
    """
    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.interpreter import without_chatter
    from captionlite.runtime.selfcheck import proven_here, record_proof, require_directory
    from captionlite.runtime.verify import verify

    bundle = Bundle.open(bundle_name)
    if record:
        require_directory(bundle)
    with without_chatter():
        report = verify(bundle, threads)
    recorded = record and report.passed and record_proof(bundle)
    if as_json:
        found = {"bundle": str(bundle.location), **report.to_json(), **({"recorded": recorded} if record else {})}
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
        click.echo("verified" if report.passed else "FAILED: this machine does not compute what the bundle promises.")
    if not report.passed:
        raise SystemExit(1)
