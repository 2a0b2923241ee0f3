"""The GPT: a decoder-only transformer, readable top to bottom.

Shapes in comments: B sequences, T positions, D model width, H heads of width K, G of them for keys and values (G = H
unless n_kv_heads is set), V vocabulary.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyscale.spec.config import LONG_CONTEXT, ModelConfig
from tinyscale.training.parametrization import EMBEDDING_STD, branch_std, head_std, scales
from tinyscale.training.rounding import Linear

NORM_EPS = 1e-5  # of every norm, added to the mean square
QUERY_BLOCKS = 4  # of a long context; more save little, and take the compiler twice as long


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention: q, k, v [B, H, T, K] -> [B, H, T, K].

    This is PyTorch's fused kernel, except in bf16 on a CPU: there the kernel's backward pass is an order of magnitude
    slower than plain matrix products. In a context of more than LONG_CONTEXT these take the queries in QUERY_BLOCKS
    blocks, each with the keys up to its last: what is masked in full is not computed.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if q.shape[-2] <= LONG_CONTEXT:
        return _attend_last(q, k, v)
    blocks = q.chunk(QUERY_BLOCKS, dim=-2)
    ends = itertools.accumulate(block.shape[-2] for block in blocks)
    return torch.cat(
        [_attend_last(block, k[..., :end, :], v[..., :end, :]) for block, end in zip(blocks, ends, strict=True)], dim=-2
    )


def _attend_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last S of T positions: q [B, H, S, K], k and v [B, H, T, K] -> [B, H, S, K].

    The mask is the first term of its sum, because the compiler recognises the other order as attention and replaces it
    by the fused kernel.
    """
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])  # [B, H, S, T]
    S, T = scores.shape[-2:]
    future = torch.full((S, T), float("-inf"), dtype=scores.dtype, device=q.device).triu(1 + T - S)
    return F.softmax(future + scores, dim=-1) @ v


def rotary_cos_sin(positions: Tensor, head_dim: int) -> Tensor:
    """Cosine and sine of the angles of rotary positions: positions [T] -> [2, T, K/2].

    The angle of pair j at position t is t * 10000^(-2j/K) (Su et al. 2021, section 3.4.2).
    """
    half = head_dim // 2
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate each pair of x [..., T, K], coordinates j and j + K/2, by its angle; cos_sin [2, T, K/2]."""
    cos, sin = cos_sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head causal self-attention: [B, T, D] -> [B, T, D].

    With G < H, each head of keys and values serves H/G consecutive heads of queries (Ainslie et al. 2023, section 2.2).
    With qk_norm, queries and keys are normalised before their product, which bounds it (Dehghani et al. 2023, section
    2); the learned scale of the queries, and that of the keys, is the same for all heads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        rotary = config.positions == "rotary"
        cos_sin = rotary_cos_sin(torch.arange(config.context_length), config.head_dim) if rotary else None
        self.cos_sin: Tensor | None  # a buffer: compiled code would compute it again for every element
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        kv_width = self.kv_heads * self.head_dim
        self.qkv = Linear(config.d_model, config.d_model + 2 * kv_width, bias=config.bias)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS) if config.qk_norm else None
        self.out = Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(attend(*self.queries_keys_values(x)).transpose(1, 2).flatten(2))
        return out

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is attended with, to and of: [B, T, D] -> [B, H, T, K] each."""
        H, G = self.n_heads, self.kv_heads
        heads = self.qkv(x).unflatten(-1, (H + 2 * G, self.head_dim)).transpose(1, 2)  # [B, H + 2G, T, K]
        qk, v = heads.split([H + G, G], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat([self.q_norm(qk[:, :H]), self.k_norm(qk[:, H:])], dim=1)
        if self.cos_sin is not None:
            qk = rotate(qk, self.cos_sin[:, : x.shape[1]])  # both in one call: on a GPU, kernel launches dominate
        q, k = qk.split([H, G], dim=1)
        if G < H:
            k, v = (each.repeat_interleave(H // G, dim=1) for each in (k, v))
        return q, k, v


class MLP(nn.Module):
    """Feed-forward network: [B, T, D] -> [B, T, D]. swiglu gates one projection with another (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        self.into = Linear(config.d_model, (2 if self.gated else 1) * config.d_ff, bias=config.bias)
        self.out = Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        out: Tensor = self.out(hidden)
        return out


def scaled(x: Tensor, scale: float) -> Tensor:
    """Scale times x; without a kernel where the scale is one."""
    return x if scale == 1 else scale * x


def build_norm(config: ModelConfig) -> nn.Module:
    """Normalisation over the last dimension: LayerNorm, or RMSNorm, which subtracts no mean and has no bias."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=NORM_EPS)
    return nn.LayerNorm(config.d_model, eps=NORM_EPS, bias=config.bias)


class Block(nn.Module):
    """Pre-norm transformer block: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = scales(config).branch
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.add(x, self.attention(self.attention_norm(x)), alpha=self.scale)
        return torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.scale)


class Positions(nn.Embedding):
    """Learned position embeddings, added to the input: [B, T, D] -> [B, T, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


class LanguageModel(nn.Module):
    """What is called with tokens [B, T] and returns logits [B, T, V] and, given targets [B, T], a loss []."""

    config: ModelConfig

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        eos_token_id: int | None = None,
    ) -> Tensor:
        """Continue tokens [B, T0] by n <= max_new_tokens tokens -> [B, T0 + n].

        Temperature 0 takes the most likely token. After eos_token_id a sequence is padded with it; generation ends
        when every sequence has produced it. The model sees the last context_length tokens only.
        """
        done = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        for _ in range(max_new_tokens):
            logits = self(tokens[:, -self.config.context_length :])[0][:, -1]  # [B, V]
            following = sample(logits, temperature, top_k)
            if eos_token_id is not None:
                following = torch.where(done, eos_token_id, following)
                done = done | (following == eos_token_id)
            tokens = torch.cat([tokens, following[:, None]], dim=1)
            if bool(done.all()):
                break
        return tokens


class GPT(LanguageModel):
    """Token ids [B, T] -> next-token logits [B, T, V]."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.scales = config, scales(config)
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.positions = Positions(config.context_length, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = build_norm(config)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        self._initialise()
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def _initialise(self) -> None:
        """Set the initial weights.

        Block matrices have std 1/sqrt(inputs), which keeps the variance of their input; those that write to the
        residual stream have `branch_std`. Embeddings have std 0.02, and the output head and an embedding tied to it
        `head_std`. Norms keep PyTorch's values: weight one, bias zero.
        """
        config = self.config
        nn.init.normal_(self.embedding.weight, std=head_std(config) if config.tie_embeddings else EMBEDDING_STD)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=EMBEDDING_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            for into, out in ((block.attention.qkv, block.attention.out), (block.mlp.into, block.mlp.out)):
                nn.init.normal_(into.weight, std=into.in_features**-0.5)
                nn.init.normal_(out.weight, std=branch_std(config, out.in_features))
                if config.bias:
                    nn.init.zeros_(into.bias)
                    nn.init.zeros_(out.bias)
        nn.init.normal_(self.head.weight, std=head_std(config))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, T, V] and, given targets [B, T], their mean cross-entropy [] in nats per token.

        A target is the token after its input, or -100 where it is not scored. The caller shifts the labels.
        """
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.unembed(x)
        if targets is None:
            return logits, None
        return logits, mean_nats(logits, targets)

    def embed(self, tokens: Tensor) -> Tensor:
        """The residual stream before the first block: tokens [B, T] -> [B, T, D]."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = self.positions(x)
        return scaled(x, self.scales.embedding)

    def unembed(self, x: Tensor) -> Tensor:
        """The logits of the residual stream after the last block: [B, T, D] -> [B, T, V]."""
        logits: Tensor = self.head(scaled(self.norm(x), self.scales.logits))
        return logits

    def count_parameters(self) -> dict[str, int]:
        """Number of parameters per part of the model, and their `total`. A tied head is counted with the embedding."""
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        parts: dict[str, list[nn.Module]] = {
            "embedding": [self.embedding],
            "positions": [self.positions] if self.positions is not None else [],
            "attention": [block.attention for block in blocks],
            "mlp": [block.mlp for block in blocks],
            "norms": [self.norm, *(norm for block in blocks for norm in (block.attention_norm, block.mlp_norm))],
            "head": [] if self.config.tie_embeddings else [self.head],
        }
        counts = {
            part: sum(p.numel() for module in modules for p in module.parameters()) for part, modules in parts.items()
        }
        total = sum(parameter.numel() for parameter in self.parameters())
        assert sum(counts.values()) == total, "every parameter belongs to one part"
        return {**counts, "total": total}


def mean_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy [] of logits [B, T, V] against targets [B, T], of which -100 is not scored."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def sample(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Sample one token id per row: logits [B, V] -> [B], among the top_k most likely (None: all)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return torch.multinomial(F.softmax(logits / temperature, dim=-1), num_samples=1)[:, 0]
