"""`captionlite verify BUNDLE`: the golden vectors on this machine."""

import json

import click


@click.command("verify")
@click.argument("bundle_name", metavar="[BUNDLE]", default="default")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle_name: str, threads: int | None, as_json: bool) -> None:
    """Check that a bundle computes here what it computed where it was made.

    Its golden photographs are encoded and decoded; every tensor must come within the bundle's own tolerance and the
    captions must be equal. The exit code is 1 where they are not.
    """
    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.interpreter import without_chatter
    from captionlite.runtime.verify import verify

    bundle = Bundle.open(bundle_name)
    with without_chatter():
        report = verify(bundle, threads)
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle.location), **report.to_json()}))
    else:
        for check in report.tensors:
            verdict = "ok" if check.passed else "FAILED"
            click.echo(f"{check.name}: relative error {check.error:.2e}, tolerance {report.tolerance:.2e}, {verdict}")
        click.echo(f"captions: {report.tokens_equal} of {report.photographs} equal token by token")
        for problem in report.token_problems:
            click.echo(f"  {problem}")
        click.echo("verified" if report.passed else "FAILED: this machine does not compute what the bundle promises.")
    if not report.passed:
        raise SystemExit(1)
