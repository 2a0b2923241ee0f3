"""Load a trained trial, sample from it, and score other text with it."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tinyscale.data import prepare
from tinyscale.data.corpora import documents, is_here
from tinyscale.data.tokenized import Part, TokenizedCorpus
from tinyscale.data.tokenizers import Tokenizer, token_dtype
from tinyscale.errors import DataError, ResultsError
from tinyscale.results.listing import find_trial
from tinyscale.results.store import Results
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.trial import Trial
from tinyscale.training.checkpoint import DamagedError, of_bytes
from tinyscale.training.evaluate import Evaluation, token_losses
from tinyscale.training.loop import WEIGHTS, weights_at
from tinyscale.training.model import GPT
from tinyscale.training.own import OwnModel, build_model
from tinyscale.training.rounding import round_for_good

SHORT = 80  # tokens of a sample that is shown with other things


@dataclass(frozen=True)
class Trained:
    """A finished trial's model and its tokenizer."""

    identity: str
    config: TrialConfig
    gpt: GPT | OwnModel
    tokenizer: Tokenizer


@dataclass(frozen=True)
class OtherText:
    """Documents as tokens of a trial's tokenizer, in the layout of its validation text."""

    stream: npt.NDArray[Any]
    eot: int
    val_documents: int
    bytes: int  # UTF-8
    record_length: int | None = None
    parts: tuple[Part, ...] = ()

    def val(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The stream and the document number of each token; the first end-of-text has -1."""
        ends = self.stream == self.eot
        return self.stream, np.cumsum(ends) - ends - 1

    def oracle(self) -> None:
        """None: the text has no known source."""


def load_trained(results: Results, named: str, at: int | None = None) -> Trained:
    """Load a trial: the beginning of its identity names it, or its cell, such as width/d_model=64,seed=0.

    at: as of `load_gpt`.

    ResultsError if no trial or several match, or if the trial has no weights. DataError if its corpus now gives another
    tokenizer.
    """
    trial = results.load_trial(find_trial(results, named))
    gpt, corpus = load_gpt(results, trial, at), load_corpus(trial)
    return Trained(trial.identity, trial.config, gpt, corpus.tokenizer())


def load_gpt(results: Results, trial: Trial, at: int | None = None) -> GPT | OwnModel:
    """The model of a finished trial, in evaluation mode, with the weights that it was scored with.

    at: training tokens; the weights are then those kept at the step that reached them. A user's own model runs from the
    copy in the results. ResultsError without it or the weights, or with damaged ones.
    """
    checkpoints = results.checkpoints(trial.identity)
    file = WEIGHTS if at is None else _weights_reaching(results, trial, at)
    if not checkpoints.exists(file):
        raise ResultsError(
            f"trial {trial.identity} is {results.state(trial.identity)} and has no weights in {checkpoints}; launch "
            "its sweep again, without --keep none"
        )
    if trial.own.model:
        trial = replace(trial, own=replace(trial.own, model=results.read_code(trial.own.model)))
    gpt = build_model(trial)
    try:
        gpt.load_state_dict(of_bytes(checkpoints.read(file)))
    except (DamagedError, RuntimeError) as error:
        raise ResultsError(
            f"{checkpoints}/{file}: damaged, or of another model ({str(error).splitlines()[0]}); delete "
            f"{results.trials}/{trial.identity}.parquet and launch its sweep again"
        ) from error
    if trial.config.train.weight_bits is not None and isinstance(gpt, GPT):
        round_for_good(gpt.blocks, trial.config.train.weight_bits)
    return gpt.eval()


def _weights_reaching(results: Results, trial: Trial, tokens: int) -> str:
    """The file of the weights at the step that reached so many tokens. ResultsError, with those kept, without it."""
    batch = trial.config.train.batch_tokens
    reached = -(-tokens // batch) * batch
    kept = results.kept_at(trial.identity)
    if reached in kept:
        return weights_at(reached)
    if reached == trial.tokens:
        return WEIGHTS
    there = f"at {', '.join(f'{each:,}' for each in kept)}" if kept else "at its end alone"
    raise ResultsError(
        f"trial {trial.identity} has no weights at {tokens:,} tokens, only {there}; launch --keep-every keeps them of "
        "trials that it trains"
    )


def load_corpus(trial: Trial) -> TokenizedCorpus:
    """The text that a trial was trained on. DataError if it now gives another tokenizer."""
    corpus = prepare(trial.config.data)
    if corpus.facts.tokenizer_hash != trial.facts.tokenizer_hash:
        raise DataError(
            f"the text of {trial.config.data.corpus} gives another tokenizer here than trial {trial.identity} had"
        )
    return corpus


def short_sample(results: Results, identity: str) -> str:
    """What a trial writes from the beginning of a document; no text is downloaded for it.

    ResultsError without its weights; DataError without its text on this machine.
    """
    data = results.load_trial(identity).config.data
    if not is_here(data):
        raise DataError(f"the text of {data.corpus} is not on this machine; tinyscale sample {identity} downloads it")
    return sample(load_trained(results, identity), "", SHORT, temperature=0.8, top_k=None, seed=0)


def sample(
    trained: Trained, prompt: str, max_new_tokens: int, *, temperature: float, top_k: int | None, seed: int
) -> str:
    """The prompt and its continuation, up to end-of-text or max_new_tokens. Temperature 0 takes the likeliest token."""
    torch.manual_seed(seed)
    start = torch.tensor([[trained.tokenizer.eot, *trained.tokenizer.encode(prompt)]])
    tokens = trained.gpt.generate(start, max_new_tokens, temperature, top_k, trained.tokenizer.eot)
    return trained.tokenizer.decode(tokens[0].tolist())


def score(trained: Trained, corpus: str, max_bytes: int | None = None) -> dict[str, Any]:
    """Score every document of a corpus or path, on the CPU in fp32.

    loss is in nats per token. Standard errors (`_se`) are clustered by document. max_bytes: of text, at most.
    """
    text = other_text(trained.tokenizer, documents(corpus, max_bytes))
    evaluation = Evaluation(text, trained.config.model.context_length, torch.device("cpu"))
    scores = evaluation.scores(token_losses(trained.gpt), nullcontext())
    tokens = int((evaluation.targets >= 0).sum())
    bits_per_nat = tokens / text.bytes / math.log(2)  # bits per byte for one nat per token
    return {
        "trial": trained.identity,
        "corpus": corpus,
        "documents": text.val_documents,
        "tokens": tokens,
        "bytes": text.bytes,
        "loss": scores.val_loss,
        "loss_se": scores.val_loss_se,
        "perplexity": math.exp(scores.val_loss),
        "bits_per_byte": scores.val_loss * bits_per_nat,
        "bits_per_byte_se": scores.val_loss_se * bits_per_nat,
    }


def other_text(tokenizer: Tokenizer, texts: list[str]) -> OtherText:
    """Tokenize documents with a trial's tokenizer."""
    pieces = list(tokenizer.stream(texts))
    stream = np.concatenate([piece.astype(token_dtype(tokenizer.vocab_size)) for piece in pieces])
    return OtherText(stream, tokenizer.eot, len(texts), sum(len(text.encode()) for text in texts))
