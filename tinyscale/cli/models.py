"""Commands that use a trained model: sample, eval, export."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tinyscale.cli.options import echo, results_option


@click.command()
@click.argument("trial")
@click.option("--prompt", default="", help="Text to go on from.  [default: the beginning of a document]")
@click.option("--tokens", default=200, show_default=True, type=click.IntRange(1), help="Most tokens to add.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0), help="0: the likeliest token.")
@click.option("--top-k", type=click.IntRange(1), help="Draw among so many likeliest tokens only.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the draws.")
@results_option
def sample(
    trial: str, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int, results: str
) -> None:
    """Let a trained TRIAL (the beginning of its identity) go on from a prompt."""
    from tinyscale.inference.trained import load_trained
    from tinyscale.inference.trained import sample as draw
    from tinyscale.results.store import Results

    trained = load_trained(Results(results), trial)
    click.echo(draw(trained, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed))


@click.command("eval")
@click.argument("trial")
@click.option("--corpus", required=True, help="A named corpus, or a path to .txt, .jsonl, .parquet or a folder.")
@click.option("--max-bytes", type=click.IntRange(1), help="Read only the first so many bytes of a corpus of the hub.")
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def evaluate(trial: str, corpus: str, max_bytes: int | None, results: str, as_json: bool) -> None:
    """Score all documents of another corpus with a trained TRIAL (the beginning of its identity).

    Standard errors are over documents. Text that the trial was trained on scores too well.
    """
    from tinyscale.inference.trained import load_trained, score
    from tinyscale.results.store import Results

    found = score(load_trained(Results(results), trial), corpus, max_bytes)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    echo(
        "{corpus}: {documents:,} documents, {tokens:,} tokens, {bytes:,} bytes\n"
        "loss {loss:.4f} ± {loss_se:.4f} nats a token, perplexity {perplexity:.2f}\n"
        "{bits_per_byte:.4f} ± {bits_per_byte_se:.4f} bits a byte".format(**found)
    )


@click.command()
@click.argument("trial")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@results_option
def export(trial: str, folder: Path, results: str) -> None:
    """Write a trained TRIAL (the beginning of its identity) to FOLDER, as the transformers library loads it."""
    from tinyscale.inference.export import export as write
    from tinyscale.inference.trained import load_trained
    from tinyscale.results.store import Results

    for path in write(load_trained(Results(results), trial), folder):
        echo(f"wrote {path}")


COMMANDS = (sample, evaluate, export)
