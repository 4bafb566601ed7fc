"""`captionlite score IMAGE CAPTION`: how likely a bundle finds a given caption."""

import json

import click


@click.command("score")
@click.argument("image", metavar="IMAGE")
@click.argument("caption", metavar="CAPTION")
@click.option("--bundle", "bundle_name", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(image: str, caption: str, bundle_name: str, threads: int | None, as_json: bool) -> None:
    """Say how well CAPTION fits IMAGE: the mean log-probability of its words, nearer to 0 is better.

    Bundles that predict a word after another: of each word after those before it, and of the end. Family masked_lm: of
    each word given all the others (pseudo-log-likelihood). So scores of different families do not compare.
    """
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.interpreter import without_chatter

    with without_chatter():
        captioner = Captioner.from_bundle(bundle_name, threads)
        rows = captioner.score(image, caption)
    logprobs = [logprob for _, logprob in rows]
    mean = sum(logprobs) / len(logprobs)
    if as_json:
        kind = "log-likelihood" if captioner.bundle.manifest.decoding.mask_id is None else "pseudo-log-likelihood"
        record = {
            "image": image,
            "caption": caption,
            "kind": kind,
            "logprob": mean,
            "logprob_sum": sum(logprobs),
            "tokens": [{"piece": piece, "logprob": logprob} for piece, logprob in rows],
        }
        click.echo(json.dumps(record, allow_nan=False))
    else:
        click.echo(f"{mean:.4f}")
