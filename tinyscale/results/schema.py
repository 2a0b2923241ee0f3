"""The columns of a results folder: what a row holds of its trial and of its point. The schema only grows."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

import pyarrow as pa

from tinyscale.spec.costs import kv_cache_numbers
from tinyscale.spec.settings import shares_in_words
from tinyscale.spec.trial import Trial

SCHEMA_VERSION = 9

MAX_EXPONENT = math.log(sys.float_info.max)
IDENTITY = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}"  # of a trial: it names files

_STRING, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_SCORES = [(name, _FLOAT) for name in ("loss", "loss_se", "bits_per_byte", "nats_per_page")]
_PART = pa.struct([("part", _STRING), ("share", _FLOAT), ("tokens", _INT), *_SCORES, ("val_tokens", _INT)])

# (name, type, what it holds). Columns are only ever added at the end, all nullable.
COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("trial", _STRING, "identity of the trial: hash of all that its numbers depend on"),
    ("state", _STRING, "running, finished, failed, diverged, or stopped early by a search or by patience"),
    ("reason", _STRING, "why a trial failed, diverged or was stopped; null otherwise"),
    ("run", _STRING, "points that share a trunk share a run; uncertainty is clustered by it"),
    # config
    ("corpus", _STRING, "name or path of the text"),
    ("tokenizer", _STRING, "bpe, char or byte"),
    ("unique_tokens", _INT, "training tokens that differ: size of the training split, or of the subset asked for"),
    ("d_model", _INT, "width of the residual stream"),
    ("n_layers", _INT, "number of blocks"),
    ("n_heads", _INT, "attention heads"),
    ("d_ff", _INT, "hidden width of the MLP"),
    ("context_length", _INT, "tokens that the model sees at once"),
    ("positions", _STRING, "learned or rotary"),
    ("norm", _STRING, "layernorm or rmsnorm"),
    ("activation", _STRING, "gelu or swiglu"),
    ("tie_embeddings", _BOOL, "the head shares the token embedding's matrix"),
    ("bias", _BOOL, "biases in linear layers and norms"),
    ("tokens_budget", _INT, "training tokens of the whole trial"),
    ("batch_tokens", _INT, "tokens of one optimizer step"),
    ("optimizer", _STRING, "the update rule"),
    ("lr", _FLOAT, "peak learning rate"),
    ("min_lr_ratio", _FLOAT, "last learning rate over the peak"),
    ("warmup_fraction", _FLOAT, "share of steps that raise the rate"),
    ("schedule", _STRING, "the rate after warm-up"),
    ("decay_fraction", _FLOAT, "share of steps in which wsd falls"),
    ("weight_decay", _FLOAT, "decoupled decay of matrices"),
    ("betas", _STRING, "the optimizer's averages, as a JSON list"),
    ("grad_clip", _FLOAT, "largest gradient norm; 0: no clipping"),
    ("precision", _STRING, "fp32, bf16 or fp16"),
    ("repeats", _BOOL, "whether more than one epoch was allowed"),
    ("eval_points", _INT, "evaluations requested"),
    ("seed", _INT, "seeds initialisation and batch order"),
    # facts of the text
    ("corpus_hash", _STRING, "hash of the documents"),
    ("tokenizer_hash", _STRING, "hash of the tokenizer"),
    ("vocab_size", _INT, "size of the vocabulary, the end-of-text token included"),
    # counts (fitting conventions: costs.py)
    ("n_non_embedding", _INT, "parameters of the blocks and the final norm"),
    ("n_embedding", _INT, "parameters of token and position embeddings"),
    ("n_lm_head", _INT, "parameters of the head; 0 when tied"),
    ("n_matmul", _INT, "parameters of matrices that multiply activations, the head included"),
    ("n_total", _INT, "all parameters, a tied head once"),
    # the point
    ("step", _INT, "optimizer steps so far"),
    ("tokens", _INT, "training tokens so far"),
    ("epochs", _FLOAT, "tokens / unique_tokens"),
    ("flops", _FLOAT, "training FLOPs so far: 6 n_matmul + 12 n_layers d_model context_length per token"),
    ("flops_6n", _FLOAT, "training FLOPs so far, as 6 n_non_embedding per token (Kaplan et al. 2020)"),
    ("flops_hoffmann", _FLOAT, "training FLOPs so far, by Hoffmann et al. 2022, appendix F"),
    ("flops_palm", _FLOAT, "training FLOPs so far, by Chowdhery et al. 2022, appendix B"),
    ("decayed", _BOOL, "the learning-rate schedule had ended here; fits use these points"),
    ("lr_now", _FLOAT, "learning rate at this step"),
    ("train_loss", _FLOAT, "mean training loss since the previous point, nats per token"),
    ("val_loss", _FLOAT, "loss on the validation set, nats per token; null for a failed or diverged trial's last row"),
    ("val_loss_se", _FLOAT, "standard error of val_loss, clustered by document"),
    ("perplexity", _FLOAT, "exp(val_loss)"),
    ("bits_per_byte", _FLOAT, "val_loss in bits per byte of the validation text"),
    ("val_tokens", _INT, "validation tokens scored, each once"),
    ("val_bytes", _INT, "UTF-8 bytes of the validation text"),
    ("wall_seconds", _FLOAT, "training seconds so far, evaluation included, over the attempts that led to this point"),
    ("tokens_per_second", _FLOAT, "training tokens per second since the previous point, evaluation excluded"),
    ("peak_memory_bytes", _INT, "largest memory of the trial's tensors on its GPU so far; null on a CPU"),
    ("workers", _INT, "workers that shared the trial"),
    ("cpu", _INT, "CPU cores of a worker"),
    ("gpu", _FLOAT, "GPUs of a worker"),
    ("schema_version", _INT, "version of this schema"),
    # since version 2
    ("parametrization", _STRING, "standard, mup or completep: what follows width and depth"),
    ("branches", _STRING, "shares of the tokens at which wsd also decayed on a branch, as a JSON list"),
    ("entropy_rate", _FLOAT, "lowest loss that any model can reach, nats per token, where the source is known"),
    ("excess", _FLOAT, "val_loss above the source's own loss on the same targets, nats per token"),
    ("excess_se", _FLOAT, "standard error of excess, clustered by document"),
    (
        "loss_by_position",
        pa.list_(_FLOAT),
        "val_loss of targets after 2^k to 2^(k+1) - 1 tokens of their document, k = 0, 1, ...; where decayed",
    ),
    # since version 3
    ("compile", _BOOL, "whether the training step was compiled"),
    ("fused", _INT, "trials in the batched model that trained this one, and that shared the seconds; 1: alone"),
    # since version 4
    ("recorded", _BOOL, "whether a GPU replayed the training step as one CUDA graph; null on a CPU"),
    # since version 5
    ("n_kv_heads", _INT, "heads of keys and values; n_heads of them unless queries share them"),
    ("qk_norm", _BOOL, "RMSNorm of each head's queries and keys"),
    ("kv_cache_per_token", _INT, "numbers that generation keeps per token of context: keys and values of all layers"),
    # since version 6
    ("weight_bits", _INT, "bits of the blocks' weights in the forward passes of training; 32: not rounded"),
    # since version 7
    ("teacher", _STRING, "identity of the trial whose predictions this one learned; null: none"),
    ("teacher_weight", _FLOAT, "share of the training loss that was the divergence from the teacher; 0: no teacher"),
    ("temperature", _FLOAT, "what divided both models' logits before they were compared; null without a teacher"),
    ("teacher_loss", _FLOAT, "the teacher's val_loss on the same targets; null without a teacher"),
    ("flops_teacher", _FLOAT, "FLOPs of the teacher's forward passes up to this row, which `flops` leaves out"),
    ("shares", _STRING, "of a mixture: its parts with their shares of the tokens, by the smallest, such as de:1+en:4"),
    (
        "by_part",
        pa.list_(_PART),
        "of a mixture, for each part: its name, share, training tokens so far, loss (nats per token) with its standard "
        "error, bits_per_byte, nats_per_page and val_tokens; val_loss and bits_per_byte are means over the parts",
    ),
    # since version 8
    ("code", _STRING, "hash of the user's own code of the model, which is in code/<hash>/; null: the built-in GPT"),
    ("extra", _STRING, "settings of that code's own, as JSON; null: none"),
    ("optimizer_code", _STRING, "hash of the user's own code of the optimizer; null: a built-in one"),
    ("optimizer_settings", _STRING, "settings of that code's own, as JSON; null: none"),
    # since version 9
    ("val", _STRING, "path of the validation text, where one was given; null: it was held out of the corpus"),
)

PARAMETER_COLUMNS = ("n_non_embedding", "n_embedding", "n_lm_head", "n_matmul", "n_total")

SCHEMA = pa.schema([pa.field(name, kind, nullable=True) for name, kind, _ in COLUMNS])

# Of results/measurements: what every row holds, and then the fields and the values of each kind.
MEASUREMENT_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("trial", _STRING, "identity of the trial that was measured"),
    ("measurement", _STRING, "identity of the measurement: hash of the trial and of all that was asked"),
    ("kind", _STRING, "kind of the measurement, such as quantize; its fields are columns below"),
    ("state", _STRING, "finished or failed"),
    ("reason", _STRING, "why it failed; null otherwise"),
    ("loss", _FLOAT, "loss of the changed model on the trial's validation set, nats per token"),
    ("loss_se", _FLOAT, "standard error of loss, clustered by document"),
    ("unchanged_loss", _FLOAT, "loss of the model as it was trained, in fp32, nats per token"),
    ("delta", _FLOAT, "loss - unchanged_loss"),
    ("delta_se", _FLOAT, "standard error of delta over the same targets, clustered by document"),
    ("bits_per_byte", _FLOAT, "loss in bits per byte"),
    ("val_tokens", _INT, "tokens scored"),
    ("wall_seconds", _FLOAT, "seconds that the measurement took"),
    ("schema_version", _INT, "version of this schema"),
    # quantize
    ("bits", _INT, "bits of a weight"),
    ("of", _STRING, "which parts of the model were changed"),
    ("group", _INT, "weights of a row that share a scale; null: the whole row"),
    ("method", _STRING, "nearest or gptq"),
    ("model_bits", _INT, "bits of the whole model, scales included"),
    # ablate, induction
    ("by", _STRING, "what took the place of a part: zero, mean or resample"),
    ("component", _STRING, "the part: attention, mlp or head; model: all of it"),
    ("layer", _INT, "its layer, the first is 0; of the model's row of induction, that of its best head"),
    ("head", _INT, "its head, the first is 0"),
    ("period", _INT, "tokens of the half that is repeated"),
    ("first_loss", _FLOAT, "loss on the first half, nats per token"),
    ("copy_loss", _FLOAT, "loss on the second half, from its second token on, nats per token"),
    ("prefix_score", _FLOAT, "mean attention to the token after the earlier place of the same token"),
    ("previous_score", _FLOAT, "mean attention to the token before"),
    # score
    ("text", _STRING, "the other text"),
    ("prompts", _STRING, "file of prompts with answers to choose from"),
    ("max_bytes", _INT, "of the other text, at most"),
    ("documents", _INT, "documents of the other text, or prompts"),
    ("text_tokens", _INT, "tokens scored of it; of prompts, those of the right answers"),
    ("text_bytes", _INT, "their UTF-8 bytes"),
    ("answer_bits_per_byte", _FLOAT, "loss of the right answers, in bits per byte"),
    ("accuracy", _FLOAT, "share of prompts whose right answer has the fewest nats per byte"),
    ("chance", _FLOAT, "accuracy of a blind guess"),
    # features
    ("site", _INT, "block after which the residual stream was read; the first is 0"),
    ("latents", _INT, "features of the sparse autoencoder"),
    ("active", _INT, "features that describe one token, at most"),
    ("sae_tokens", _INT, "tokens that the autoencoder was trained on"),
    ("sae_flops", _FLOAT, "FLOPs of its training, those of the model left out"),
    ("fvu", _FLOAT, "share of the variance of the residual stream that the autoencoder leaves unexplained"),
    ("fvu_token", _FLOAT, "share of the variance within a token: what knowing the token leaves unexplained"),
    ("dead", _FLOAT, "share of features that never fire on the validation text"),
    ("mean_ablation", _FLOAT, "delta where the mean stands for the residual stream, instead of its reconstruction"),
    # memory
    ("weight_bytes", _INT, "bytes of the weights, a tied head once"),
    ("state_bytes", _INT, "bytes that the optimizer holds between steps"),
    ("saved_bytes", _INT, "bytes that a step of one worker keeps for its backward pass, logits left out"),
    ("logits_bytes", _INT, "bytes that such a step keeps of the logits for its backward pass"),
    ("peak_bytes", _INT, "largest memory of such a step on a GPU; null on a CPU"),
    ("cache_bytes_per_token", _INT, "bytes that generation keeps per token of context"),
)

MEASUREMENTS = pa.schema([pa.field(name, kind, nullable=True) for name, kind, _ in MEASUREMENT_COLUMNS])


def trial_columns(trial: Trial) -> dict[str, Any]:
    """The columns that are the same in all of a trial's rows: its configuration, and what the data made of it."""
    config = trial.config
    data = config.data.model_dump(exclude={"val_bytes"})  # what is asked for; the column is what was held out
    described = {**data, **config.model.model_dump(), **config.train.model_dump()}
    described |= {
        "run": trial.identity,
        "tokenizer": config.data.tokenizer.kind,
        "betas": json.dumps(config.train.betas),
        "branches": json.dumps(config.train.branches),
        "shares": shares_in_words(config.data.shares) or None,
        "seed": config.seed,
        "n_kv_heads": config.model.kv_heads,
        "weight_bits": config.train.weight_bits or 32,
        "teacher_weight": config.train.teacher_weight if trial.teacher else 0.0,
        "temperature": config.train.temperature if trial.teacher else None,
        "kv_cache_per_token": None if trial.own.model else kv_cache_numbers(config.model),
        "code": trial.own.model and trial.own.model.hash,
        "extra": _settings(config.model.extra),
        "optimizer": config.train.optimizer_name,
        "optimizer_code": trial.own.optimizer and trial.own.optimizer.hash,
        "optimizer_settings": _settings(getattr(config.train.optimizer, "settings", {})),
        **config.resources.model_dump(),
    }
    facts = {**asdict(trial.facts), "unique_tokens": trial.unique_tokens}
    counts = {name: getattr(trial.parameters, name) for name in PARAMETER_COLUMNS}
    return {name: value for name, value in (described | facts | counts).items() if name in SCHEMA.names}


def _settings(settings: Mapping[str, Any]) -> str | None:
    return json.dumps(settings, sort_keys=True) if settings else None


def point_columns(trial: Trial, point: Mapping[str, Any], val_tokens: int, val_bytes: int) -> dict[str, Any]:
    """The columns of one evaluation: what was measured, and what follows from it."""
    tokens, loss, parts = point["tokens"], point["val_loss"], point.get("by_part")
    bits = loss * val_tokens / val_bytes / math.log(2)
    return {
        **point,
        **{name: per_token * tokens for name, per_token in trial.flops_per_token.items()},
        "flops_teacher": trial.teacher_flops_per_token * tokens,
        "epochs": tokens / trial.unique_tokens,
        "perplexity": math.exp(loss) if loss < MAX_EXPONENT else math.inf,
        "bits_per_byte": fmean(part["bits_per_byte"] for part in parts) if parts else bits,
        "val_tokens": val_tokens,
        "val_bytes": val_bytes,
    }
