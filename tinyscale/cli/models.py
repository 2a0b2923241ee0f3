"""Commands that use a trained model: sample, eval, export."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tinyscale.cli.options import echo, examples, read_tokens, results_option

at_option = click.option(
    "--at",
    metavar="TOKENS",
    callback=read_tokens,
    help="Take the weights that launch --keep-every kept at so many tokens.  [default: the final ones]",
)


@click.command(epilog=examples('sample 3f2a --prompt "The cat" --tokens 50'))
@click.argument("trial")
@click.option("--prompt", default="", help="Text to continue.  [default: the beginning of a document]")
@click.option(
    "--tokens", default=200, show_default=True, type=click.IntRange(1), help="Largest number of tokens to add."
)
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0), help="0: the likeliest token.")
@click.option("--top-k", type=click.IntRange(1), help="Sample only among this many likeliest tokens.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the sampling.")
@at_option
@results_option
def sample(
    trial: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    at: int | None,
    results: str,
) -> None:
    """Continue a prompt with a trained model.

    TRIAL is the beginning of an identity, or a cell such as width/d_model=64,seed=0 (tinyscale ls lists both).
    """
    from tinyscale.inference.trained import load_trained
    from tinyscale.inference.trained import sample as sample_text
    from tinyscale.results.store import Results

    trained = load_trained(Results(results), trial, at)
    click.echo(sample_text(trained, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed))


@click.command("eval", epilog=examples("eval 3f2a --corpus other.txt"))
@click.argument("trial")
@click.option("--corpus", required=True, help="A named corpus, or a path to .txt, .jsonl, .parquet or a folder.")
@click.option("--max-bytes", type=click.IntRange(1), help="Read only this many bytes of a corpus of the hub.")
@at_option
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def evaluate(trial: str, corpus: str, max_bytes: int | None, at: int | None, results: str, as_json: bool) -> None:
    """Measure the loss of a trained model on another corpus.

    TRIAL is the beginning of an identity, or a cell such as width/d_model=64,seed=0 (tinyscale ls lists both). Every
    document of the corpus is scored. Standard errors are over documents. On text that the trial was trained on, the
    loss is too low.
    """
    from tinyscale.inference.trained import load_trained, score
    from tinyscale.results.store import Results

    found = score(load_trained(Results(results), trial, at), corpus, max_bytes)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    echo(
        "{corpus}: {documents:,} documents, {tokens:,} tokens, {bytes:,} bytes\n"
        "loss {loss:.4f} ± {loss_se:.4f} nats per token, perplexity {perplexity:.2f}\n"
        "{bits_per_byte:.4f} ± {bits_per_byte_se:.4f} bits per byte".format(**found)
    )


@click.command(epilog=examples("export 3f2a model"))
@click.argument("trial")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@results_option
def export(trial: str, folder: Path, results: str) -> None:
    """Write a trained model for the transformers library.

    TRIAL is the beginning of an identity, or a cell such as width/d_model=64,seed=0 (tinyscale ls lists both). FOLDER
    receives weights, configuration and tokenizer.
    """
    from tinyscale.inference.export import export as write
    from tinyscale.inference.trained import load_trained
    from tinyscale.results.store import Results

    for path in write(load_trained(Results(results), trial), folder):
        echo(f"wrote {path}")


COMMANDS = (sample, evaluate, export)
