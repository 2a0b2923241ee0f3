"""The shapes that train_throughput.py times, and the other models that it compares ours with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_HEAD_DIM = 32  # a narrower model has one head


@dataclass(frozen=True)
class Shape:
    """A model and its batch: `rows` rows of context_length tokens."""

    vocab_size: int
    d_model: int
    n_layers: int
    context_length: int
    rows: int

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.rows * self.context_length

    @property
    def n_heads(self) -> int:
        """Number of attention heads."""
        return max(1, self.d_model // LEAST_HEAD_DIM)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.n_heads


SHAPES = {
    "S1": Shape(96, 32, 2, 128, 32),
    "S2": Shape(512, 64, 4, 128, 32),
    "S3": Shape(2048, 128, 4, 128, 32),
    "S4": Shape(4096, 256, 6, 256, 16),
    "C1": Shape(512, 64, 4, 1024, 4),  # a long context
    "Q6": Shape(512, 6, 2, 64, 16),  # the quickstart's widths
    "Q16": Shape(512, 16, 2, 64, 16),
    "Q36": Shape(512, 36, 2, 64, 16),
}


class PlainBlock(nn.Module):
    """A pre-norm transformer block, as in textbooks: [B, T, D] -> [B, T, D]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        self.n_heads = shape.n_heads
        self.norm1, self.norm2 = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d, bias=False), nn.GELU(), nn.Linear(4 * d, d, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Plain(nn.Module):
    """Our default architecture, as in textbooks: token ids [B, T] -> logits [B, T, V]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.positions = nn.Embedding(shape.context_length, shape.d_model)
        self.blocks = nn.Sequential(*[PlainBlock(shape) for _ in range(shape.n_layers)])
        self.norm = nn.LayerNorm(shape.d_model, bias=False)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class GPT2(nn.Module):
    """GPT-2 of the transformers library: biases, tied head, tanh-GELU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=shape.vocab_size,
            n_embd=shape.d_model,
            n_layer=shape.n_layers,
            n_head=shape.n_heads,
            n_positions=shape.context_length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits


def litgpt(shape: Shape) -> nn.Module:
    """GPT of litgpt: LayerNorm with biases, rotary positions, no biases in linear layers."""
    from litgpt import GPT, Config

    config = Config(
        block_size=shape.context_length,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.n_layers,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    return GPT(config)


PEERS: dict[str, Callable[[Shape], nn.Module]] = {"plain": Plain, "transformers": GPT2, "litgpt": litgpt}
