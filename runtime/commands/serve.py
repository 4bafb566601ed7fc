"""`captionlite serve`: captions over HTTP."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captionlite.runtime.commands.options import decoding_options, delegate_option, read_options, tell_delegate

if TYPE_CHECKING:
    from captionlite.runtime.delegates import DelegateSpec
    from captionlite.runtime.service.limits import Limits

MB = 10**6


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the token that clients send as `Authorization: Bearer TOKEN`; or environment CAPTIONLITE_TOKEN.",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name in Host to answer to; may be repeated.")
@click.option("--bundle", "bundle_name", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--workers", type=click.IntRange(1, 64), help="Captioners side by side.  [default: cores, at most 4]")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of each worker's encoder.")
@click.option("--queue", type=click.IntRange(0, 10_000), default=16, show_default=True, help="Requests that may wait.")
@click.option(
    "--max-upload-mb", type=click.FloatRange(0.001, 1000), default=10, show_default=True, help="Largest file."
)
@click.option(
    "--max-megapixels", type=click.FloatRange(0.001, 120), default=25, show_default=True, help="Largest photograph."
)
@click.option(
    "--timeout", type=click.FloatRange(0.01, 3600), default=30, show_default=True, help="Seconds from upload to answer."
)
@click.option(
    "--read-timeout", type=click.FloatRange(0.01, 3600), default=20, show_default=True, help="Seconds for an upload."
)
@click.option("--max-connections", type=click.IntRange(min=1), default=64, show_default=True, help="At a time.")
@click.option(
    "--grace", type=click.FloatRange(0, 3600), default=20, show_default=True, help="Seconds that a stop may take."
)
@delegate_option
@decoding_options
@click.option("--n-best", type=click.IntRange(min=1), help="List so many hypotheses; needs --beams or --best-of.")
@click.option("--min-confidence", type=click.FloatRange(0, 1), help='Below this, answer "sure": false.')
@click.option("--json", "as_json", is_flag=True, help="When ready, print one JSON object with the address.")
def command(
    host: str,
    port: int,
    token_file: Path | None,
    allow_host: tuple[str, ...],
    bundle_name: str,
    threads: int,
    delegate: "DelegateSpec | None",
    min_confidence: float | None,
    as_json: bool,
    **others: Any,
) -> None:
    """Caption photographs over HTTP: POST /v1/caption, with /healthz, /metrics and /openapi.json.

    Decoding options given here are the defaults of requests that bring none. It answers this machine alone unless
    --host says otherwise, and others only with a token. SIGTERM and Ctrl-C let what is in flight finish.

    \b
    captionlite serve
    curl -F image=@photo.jpg localhost:8080/v1/caption
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'localhost:8080/v1/caption?beams=3'
    """
    options = read_options({name: value for name, value in others.items() if name not in _LIMITS})
    import os

    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.interpreter import without_chatter
    from captionlite.runtime.selfcheck import check_here
    from captionlite.runtime.service.access import Access, read_token
    from captionlite.runtime.service.answers import Answerer
    from captionlite.runtime.service.app import Pool, Service
    from captionlite.runtime.service.body import Held
    from captionlite.runtime.service.memory import give_memory_back
    from captionlite.runtime.service.metrics import Metrics
    from captionlite.runtime.service.parameters import Asked
    from captionlite.runtime.service.problems import RequestError
    from captionlite.runtime.service.server import listen, run, url_of

    limits = limits_of(click.get_current_context().params)
    access = Access.of(host, read_token(token_file), allow_host)
    bundle = Bundle.open(bundle_name)
    asked = Asked(options, min_confidence)
    made: list[Captioner] = []

    def make() -> Captioner:
        captioner = Captioner(bundle, threads, delegate)
        check_here(captioner)
        if not made:
            try:
                Answerer.check(captioner, asked)
            except RequestError as error:
                raise click.UsageError(error.found or error.what) from None
            made.append(captioner)
        return captioner

    pool = Pool(make, Answerer(limits, asked), limits.workers, limits.queue, RequestError)
    held, metrics = Held(limits.held_bytes), Metrics()
    metrics.connect(pool, held, bundle, limits)
    listener = listen(host, port)
    give_memory_back()
    with without_chatter():
        pool.start()
    tell_delegate(made[0])

    def ready() -> None:
        url = url_of(listener)
        told = {"url": url, "pid": os.getpid(), "bundle": bundle.manifest.name, "workers": limits.workers}
        if as_json:
            click.echo(json.dumps(told))
        click.echo(
            f"Serving {bundle.manifest.name!r} at {url}/v1/caption with {limits.workers} workers"
            f"{', token required' if access.token else ''}. Ctrl-C stops.",
            err=True,
        )

    run(Service(pool, limits, access, metrics, held), listener, ready)


_LIMITS = {
    "workers", "queue", "max_upload_mb", "max_megapixels", "timeout", "read_timeout", "max_connections", "grace",
}  # fmt: skip


def limits_of(given: dict[str, Any]) -> "Limits":
    """The bounds that the options of `serve` set. Raises OptionsError."""
    from captionlite.runtime.service.limits import Limits, default_workers

    return Limits(
        workers=given["workers"] or (1 if given["delegate"] else default_workers()),  # an accelerator is one
        queue=given["queue"],
        upload_bytes=round(given["max_upload_mb"] * MB),
        pixels=round(given["max_megapixels"] * MB),
        timeout_s=given["timeout"],
        read_timeout_s=given["read_timeout"],
        connections=given["max_connections"],
        grace_s=given["grace"],
    )
