"""What a trial costs, in closed form: parameters, training FLOPs per token in four conventions, memory.

Symbols: L layers, d width, f the MLP's hidden width, h heads of width k, T context length, V vocabulary.
Training is three times the forward pass: the backward pass costs two (Hoffmann et al. 2022, appendix F).
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyscale.errors import ConfigError
from tinyscale.spec.config import ModelConfig, TrainConfig, TrialConfig


@dataclass(frozen=True)
class Parameters:
    """Parameter counts in groups; n_total = n_non_embedding + n_embedding + n_lm_head (a tied head counts once)."""

    n_non_embedding: int
    n_embedding: int
    n_lm_head: int
    n_matmul: int

    @property
    def n_total(self) -> int:
        """All parameters of the model."""
        return self.n_non_embedding + self.n_embedding + self.n_lm_head


def parameters(model: ModelConfig, vocab_size: int) -> Parameters:
    """Count the model's parameters without building it.

    n_non_embedding is the blocks and the final norm (Kaplan et al. 2020, section 2.1, counts 12 L d^2: norms and
    biases left out). n_matmul is what multiplies activations: the blocks' matrices and the head, tied or not.
    """
    L, d, f = model.n_layers, model.d_model, model.d_ff
    mlp_inputs = 2 if model.activation == "swiglu" else 1
    block_matrices = 4 * d * d + (mlp_inputs + 1) * d * f
    block_biases = (4 * d + mlp_inputs * f + d) if model.bias else 0
    norm = 2 * d if model.bias and model.norm == "layernorm" else d
    head = vocab_size * d
    return Parameters(
        n_non_embedding=L * (block_matrices + block_biases + 2 * norm) + norm,
        n_embedding=head + (model.context_length * d if model.positions == "learned" else 0),
        n_lm_head=0 if model.tie_embeddings else head,
        n_matmul=L * block_matrices + head,
    )


def flops_per_token(model: ModelConfig, vocab_size: int) -> dict[str, float]:
    """Training FLOPs per token, by convention; the keys are the columns of the results.

    flops           6 n_matmul + 12 L d T: every matrix product, the head and the full T x T attention included
    flops_6n        6 n_non_embedding (Kaplan et al. 2020, section 2.1)
    flops_hoffmann  the itemised count of Hoffmann et al. 2022, appendix F: embedding as a product, softmax, head
    flops_palm      6 (n_total - positions) + 12 L d T (Chowdhery et al. 2022, appendix B)
    """
    L, d, f, h, T, V = model.n_layers, model.d_model, model.d_ff, model.n_heads, model.context_length, vocab_size
    counts = parameters(model, vocab_size)
    mlp_matrices = 3 if model.activation == "swiglu" else 2
    attention = 6 * d * d + 2 * T * d + 3 * h * T + 2 * T * d + 2 * d * d  # q, k, v; logits; softmax; values; output
    forward = 2 * V * d + L * (attention + 2 * mlp_matrices * d * f) + 2 * d * V
    positions = T * d if model.positions == "learned" else 0
    return {
        "flops": 6.0 * counts.n_matmul + 12.0 * L * d * T,
        "flops_6n": 6.0 * counts.n_non_embedding,
        "flops_hoffmann": 3.0 * forward,
        "flops_palm": 6.0 * (counts.n_total - positions) + 12.0 * L * d * T,
    }


def memory_bytes(config: TrialConfig, vocab_size: int) -> float:
    """Bytes that a worker's training step holds at its peak: weights, gradients, optimizer state and activations.

    Activations are what the backward pass needs, by token: in a block 8 d + 2 f (gelu) or 4 f (swiglu), 3 d for rotary
    positions, one a head; of the head the logits, their softmax and its gradient. bf16 keeps half of it at two bytes.
    The process itself (Python, torch, Ray; on a GPU its context) comes on top.
    """
    model, train = config.model, config.train
    state = 3 if train.optimizer == "lion" else 4  # weights, gradients and one or two averages, in fp32
    state += state - 1 if train.branches else 0  # the trunk's weights and averages, set aside during a branch
    mlp = (4 if model.activation == "swiglu" else 2) * model.d_ff
    rotary = 3 * model.d_model if model.positions == "rotary" else 0
    block = 8 * model.d_model + mlp + rotary + model.n_heads
    block_bytes = 4 if train.precision == "fp32" else 3
    per_token = block_bytes * model.n_layers * block + 4 * (3 * vocab_size + 2 * model.d_model)
    tokens = train.batch_tokens / config.resources.workers
    return 4.0 * state * parameters(model, vocab_size).n_total + per_token * tokens


CONTEXT_BYTES = 0.6e9  # of a GPU, that a process takes for itself before any tensor
HEADROOM = 1.2  # measured memory over the forecast: workspaces, and blocks that do not fit each other
FEWEST_BYTES = 64e6  # what a share leaves a trial in any case


def share_bytes(share: float, device_bytes: float) -> float:
    """Bytes of tensors that a trial with a share of a GPU may hold, so that all shares and their contexts fit."""
    return max(FEWEST_BYTES, share * device_bytes - CONTEXT_BYTES)


def smallest_share(needed: float, device_bytes: float, above: float = 0.0) -> float | None:
    """The least of 1, 1/2, 1/4, ... of a GPU, larger than `above`, whose bytes hold `needed`; None when none does.

    Halves of halves, so that shares of different trials fill one device.
    """
    shares = [2.0**-k for k in range(7)]
    legal = [share for share in shares if share > above and share_bytes(share, device_bytes) >= needed]
    return min(legal, default=None)


def decay_steps(steps: int, train: TrainConfig) -> int:
    """Steps in which the wsd schedule of a trial of so many steps falls."""
    return max(1, round(train.decay_fraction * steps))


def training_steps(model: ModelConfig, train: TrainConfig, vocab_size: int, unique_tokens: int = 0) -> int:
    """Optimizer steps that come closest to the budget, whichever form it takes. ConfigError below one.

    A budget in epochs counts passes over unique_tokens; its last, partial step is left out, so that one epoch repeats
    nothing.
    """
    if train.tokens_budget is not None:
        tokens = float(train.tokens_budget)
    elif train.tokens_per_param is not None:
        tokens = train.tokens_per_param * parameters(model, vocab_size).n_non_embedding
    elif train.flops_budget is not None:
        tokens = train.flops_budget / flops_per_token(model, vocab_size)["flops"]
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
