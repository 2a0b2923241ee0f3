"""What a trial costs, in closed form: parameters, training FLOPs per token in four conventions, memory.

All three are sums over the matrices of a block, which `block_matrices` lists.
Symbols: L layers, d width, f hidden width of the MLP, h heads of width k, T context length, V vocabulary size.
A training step costs three forward passes: the backward pass costs two (Hoffmann et al. 2022, appendix F).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from tinyscale.errors import ConfigError
from tinyscale.spec.config import ModelConfig, TrainConfig, TrialConfig


@dataclass(frozen=True)
class Matrix:
    """A matrix of a block, [outputs, inputs]. `residual`: its output is added to the residual stream."""

    module: str  # its path in the built block
    inputs: int
    outputs: int
    residual: bool = False

    @property
    def size(self) -> int:
        """Number of weights; also the multiply-adds per token."""
        return self.inputs * self.outputs


def block_matrices(model: ModelConfig) -> list[Matrix]:
    """The matrices of one block, in the order of the forward pass. Each multiplies every token once."""
    d, f = model.d_model, model.d_ff
    return [
        Matrix("attention.qkv", d, d + 2 * model.kv_heads * model.head_dim),
        Matrix("attention.out", d, d, residual=True),
        Matrix("mlp.into", d, 2 * f if model.activation == "swiglu" else f),
        Matrix("mlp.out", f, d, residual=True),
    ]


@dataclass(frozen=True)
class Parameters:
    """Parameter counts in groups; n_total = n_non_embedding + n_embedding + n_lm_head (a tied head counts once)."""

    n_non_embedding: int
    n_embedding: int
    n_lm_head: int
    n_matmul: int
    n_positions: int  # learned positions, a part of n_embedding

    @property
    def n_total(self) -> int:
        """All parameters of the model."""
        return self.n_non_embedding + self.n_embedding + self.n_lm_head


@dataclass(frozen=True)
class Counted:
    """What was counted of a user's own model, which no formula describes.

    flops: of training, per token; saved: numbers per token that a training step keeps for its backward pass; summing:
    names of the parameters that sum over the width, whose learning rate follows it under `mup`, and else none.
    """

    parameters: Parameters
    flops: float
    saved: float
    summing: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        summing = tuple(written.get("summing", ()))
        return cls(Parameters(**written["parameters"]), float(written["flops"]), float(written["saved"]), summing)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {name: value for name, value in asdict(self).items() if value != ()}


def parameters(model: ModelConfig, vocab_size: int, counted: Counted | None = None) -> Parameters:
    """Count the built-in GPT's parameters without building it. counted: of a user's own model, which says them.

    n_non_embedding is the blocks and the final norm (Kaplan et al. 2020, section 2.1, counts 12 L d^2: no norms, no
    biases). n_matmul counts the matrices that multiply activations: those of the blocks, and the head, tied or not.
    """
    if counted:
        return counted.parameters
    L, d = model.n_layers, model.d_model
    block = block_matrices(model)
    weights = sum(matrix.size for matrix in block)
    biases = sum(matrix.outputs for matrix in block) if model.bias else 0
    norm = 2 * d if model.bias and model.norm == "layernorm" else d
    qk_norms = 2 * model.head_dim if model.qk_norm else 0
    head = vocab_size * d
    positions = model.context_length * d if model.positions == "learned" else 0
    return Parameters(
        n_non_embedding=L * (weights + biases + 2 * norm + qk_norms) + norm,
        n_embedding=head + positions,
        n_lm_head=0 if model.tie_embeddings else head,
        n_matmul=L * weights + head,
        n_positions=positions,
    )


def flops_per_token(model: ModelConfig, vocab_size: int, counted: Counted | None = None) -> dict[str, float]:
    """Training FLOPs per token, by convention; the keys are the columns of the results.

    flops           6 n_matmul + 12 L d T: all matrix products, with the head and the full T x T attention
    flops_6n        6 n_non_embedding (Kaplan et al. 2020, section 2.1)
    flops_hoffmann  flops + 6 V d + 9 L h T: also the embedding as a product, and softmax (Hoffmann et al. 2022,
                    appendix F)
    flops_palm      6 (n_total - n_positions) + 12 L d T (Chowdhery et al. 2022, appendix B)

    counted: of a user's own model, which has those of the conventions that need no more than was counted.
    """
    if counted:
        return {"flops": counted.flops, "flops_6n": 6.0 * counted.parameters.n_non_embedding}
    L, d, h, T = model.n_layers, model.d_model, model.n_heads, model.context_length
    counts = parameters(model, vocab_size)
    attention = 12.0 * L * d * T  # logits q k and the weighted sum of v: 2 d T each per forward pass
    flops = 6.0 * counts.n_matmul + attention
    return {
        "flops": flops,
        "flops_6n": 6.0 * counts.n_non_embedding,
        "flops_hoffmann": flops + 6.0 * vocab_size * d + 9.0 * L * h * T,
        "flops_palm": 6.0 * (counts.n_total - counts.n_positions) + attention,
    }


def kv_cache_numbers(model: ModelConfig) -> int:
    """Numbers that generation must keep per token of context: keys and values of all layers, 2 L n_kv_heads k."""
    return 2 * model.n_layers * model.kv_heads * model.head_dim


WORKSPACES = 1e8  # bytes that the libraries of matrix products take on a GPU
TEXT_SHARE = 0.1  # of a GPU's memory that a trial may hold, at most, for its text; a larger one stays on the host


def token_bytes(vocab_size: int) -> int:
    """Bytes of a token of text on a GPU."""
    return 2 if vocab_size <= 2**15 else 4


def memory_bytes(config: TrialConfig, vocab_size: int, train_tokens: int = 0, counted: Counted | None = None) -> float:
    """Peak bytes of a worker's training step: weights, gradients, optimizer state and activations.

    Activations are what the backward pass needs, per token. In a block: the input of each matrix, its output unless
    that is added to the residual stream, the input of both norms (of rmsnorm also what its scale multiplies), the
    activated gate of swiglu, one number per head, and what `_changed_heads` says. For the head: the logits, their
    softmax and its gradient. bf16 keeps half of a block's in two bytes. A GPU also holds the text of train_tokens,
    unless that is large relative to the rest. The process itself (Python, torch, Ray; on a GPU its context) comes on
    top. counted: of a user's own model.
    """
    model, train = config.model, config.train
    state = 2 + train.rule.states  # weights, gradients and averages, in fp32
    state += state - 1 if train.branches else 0  # the trunk's weights and averages, set aside during a branch
    kept = sum(matrix.inputs + (0 if matrix.residual else matrix.outputs) for matrix in block_matrices(model))
    gate = model.d_ff if model.activation == "swiglu" else 0
    norm = model.d_model * (2 if model.norm == "rmsnorm" else 1)
    block = kept + 2 * norm + gate + _changed_heads(model) + model.n_heads
    block_bytes = 4 if train.precision == "fp32" else 3
    per_token: float = block_bytes * model.n_layers * block + 4 * (3 * vocab_size + model.d_model + norm)
    if counted:
        per_token = 4.0 * (counted.saved + 2 * vocab_size)  # and of the logits their softmax and its gradient
    tokens = train.batch_tokens / config.resources.workers
    step = 4.0 * state * parameters(model, vocab_size, counted).n_total + per_token * tokens
    if not config.resources.gpu:
        return step
    text = train_tokens * token_bytes(vocab_size)
    return step + WORKSPACES + min(text, TEXT_SHARE * step)


def teacher_bytes(config: TrialConfig, teacher: Parameters, vocab_size: int) -> float:
    """Bytes that a teacher adds to a worker's training step: its weights, and both models' log-probabilities."""
    tokens = config.train.batch_tokens / config.resources.workers
    return 4.0 * (teacher.n_total + 4 * vocab_size * tokens)


def _changed_heads(model: ModelConfig) -> int:
    """Numbers per token that attention keeps because its input is not the projection itself.

    Rotation and normalisation copy queries and keys, and the output is then copied too; normalisation also keeps them
    before its scale. Keys and values that several heads share are repeated; without qk_norm, a rotated projection is
    then kept in none of its parts.
    """
    d, kv = model.d_model, model.kv_heads * model.head_dim
    rotary, shared = model.positions == "rotary", model.kv_heads < model.n_heads
    copied = d + kv + d if rotary or model.qk_norm else 0
    normalised = d + kv if model.qk_norm else 0
    repeated = 2 * d if shared else 0
    return copied + normalised + repeated - (d + 2 * kv if shared and rotary and not model.qk_norm else 0)


CONTEXT_BYTES = 0.6e9  # of GPU memory, taken by each process before its first tensor
HEADROOM = 1.2  # measured memory divided by the forecast: workspaces and fragmentation
FEWEST_BYTES = 64e6  # the smallest cap on a trial's memory


def share_bytes(share: float, device_bytes: float) -> float:
    """Bytes that the tensors of a trial with this share of a GPU may take, so that all shares and contexts fit."""
    return max(FEWEST_BYTES, share * device_bytes - CONTEXT_BYTES)


def smallest_share(needed: float, device_bytes: float, above: float = 0.0) -> float | None:
    """The smallest of 1, 1/2, 1/4, ... of a GPU above `above` that holds `needed` bytes; None when none does.

    Powers of two, so that trials with different shares fill one device.
    """
    shares = [2.0**-k for k in range(7)]
    legal = [share for share in shares if share > above and share_bytes(share, device_bytes) >= needed]
    return min(legal, default=None)


def decay_steps(steps: int, train: TrainConfig) -> int:
    """Steps over which the wsd schedule decays, at the end of a trial of `steps` steps."""
    return max(1, round(train.decay_fraction * steps))


def training_steps(
    model: ModelConfig,
    train: TrainConfig,
    vocab_size: int,
    unique_tokens: int = 0,
    counted: Counted | None = None,
) -> int:
    """Number of optimizer steps closest to the budget, in any of its forms. ConfigError below one.

    counted: of a user's own model.

    A budget in epochs counts passes over unique_tokens. Its last, partial step is left out, so that one epoch repeats
    no token.
    """
    if train.tokens_budget is not None:
        tokens = float(train.tokens_budget)
    elif train.tokens_per_param is not None:
        tokens = train.tokens_per_param * parameters(model, vocab_size, counted).n_non_embedding
    elif train.flops_budget is not None:
        tokens = train.flops_budget / flops_per_token(model, vocab_size, counted)["flops"]
    else:
        assert train.epochs_budget is not None, "TrainConfig has exactly one budget"
        tokens = train.epochs_budget * (unique_tokens - 1) // train.batch_tokens * train.batch_tokens
    steps = round(tokens / train.batch_tokens)
    if steps < 1:
        raise ConfigError(
            f"the budget allows {tokens:,.0f} tokens, less than one step of train.batch_tokens = "
            f"{train.batch_tokens:,}: raise the budget or lower batch_tokens"
        )
    return steps
