"""Sparse autoencoders of the residual stream: how much of it a few of many features explain, and what the rest costs.

The residual stream after a block is read at every token but end-of-text and the first of a window: the norm of these
few can be so large that they would rule the squared error. They are not trained on, not counted and not replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyscale.measurements.subject import Subject
from tinyscale.spec.measurement import Features
from tinyscale.training.batches import batches_of, val_windows
from tinyscale.training.evaluate import EVAL_TOKENS
from tinyscale.training.model import GPT

BATCH = 256  # activations per step
LR = 0.128  # of Adam, divided by the root of the number of latents; five times that of Gao et al., for far fewer steps
EPS = 6.25e-10  # of Adam, as theirs
DECAY = 0.2  # share of the steps over which the rate falls to 0, at the end
FIRES = 1e-3  # a latent above it has fired

Change = Callable[[Tensor], Tensor]  # of activations [m, D]


class TopK(nn.Module):
    """Activations [m, D] -> their reconstruction from `active` of n latents. Gao et al. 2024 (2406.04093), section 2.

    latents = relu(topk(W_e (x - b) + b_e)) and reconstruction = W_d latents + b, where x is the activation less
    `centre` and in units of `scale`. The columns of W_d, here rows, have unit norm.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, latents: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.decoder, self.encoder = (nn.Parameter(torch.zeros(latents, width)) for _ in range(2))  # [n, D]
        self.encoder_bias, self.bias = nn.Parameter(torch.zeros(latents)), nn.Parameter(torch.zeros(width))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def begin(self, x: Tensor, generator: torch.Generator) -> None:
        """Take centre, scale and directions from activations x [m, D]; the encoder begins as the decoder.

        scale: the root of the mean variance of a coordinate. Latents that begin as directions of the data die less
        often than others; those for which the activations do not suffice begin at random.
        """
        latents, width = self.decoder.shape
        self.centre.copy_(x.mean(dim=0))
        self.scale.copy_((x - self.centre).square().mean().sqrt())
        some = torch.randperm(len(x), generator=generator)[:latents]
        others = torch.randn(latents - len(some), width, generator=generator).to(x.device)
        self.decoder.copy_(F.normalize(torch.cat([x[some] - self.centre, others]), dim=1))
        self.encoder.copy_(self.decoder)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The active latents of x [m, D]: their values, and their numbers among the latents, [m, k] each."""
        x = (x - self.centre) / self.scale
        before = F.linear(x, self.encoder, self.encoder_bias - self.encoder @ self.bias)
        values, numbers = before.topk(self.active, dim=1, sorted=False)
        return values.relu(), numbers

    def decode(self, values: Tensor, numbers: Tensor) -> Tensor:
        """The reconstruction [m, D] from active latents."""
        x = F.embedding_bag(numbers, self.decoder, per_sample_weights=values, mode="sum") + self.bias
        return x * self.scale + self.centre

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(*self.encode(x))

    @torch.no_grad()
    def drop_parallel(self) -> None:
        """Drop the part of the decoder's gradient that would change the norm of its rows."""
        gradient = self.decoder.grad
        assert gradient is not None
        gradient -= (gradient * self.decoder).sum(dim=1, keepdim=True) * self.decoder

    @torch.no_grad()
    def unit_norm(self) -> None:
        """Give the decoder's rows unit norm again."""
        self.decoder.copy_(F.normalize(self.decoder, dim=1))


def train(sae: TopK, chunks: Iterator[Tensor], activations: int, seed: int) -> None:
    """Train on that many activations, taken from chunks [m, D] in random order; the first chunk gives the beginning."""
    generator = torch.Generator().manual_seed(seed)
    first = next(chunks)
    sae.begin(first, generator)
    steps = max(1, activations // BATCH)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR / len(sae.decoder) ** 0.5, eps=EPS)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1 - step / steps) / DECAY))
    batches = (
        chunk[rows]
        for chunk in chain([first], chunks)
        for rows in torch.randperm(len(chunk), generator=generator).split(BATCH)  # type: ignore[no-untyped-call]
    )
    for batch in islice(batches, steps):
        optimizer.zero_grad()
        loss = F.mse_loss(sae(batch), batch) / sae.scale**2
        loss.backward()  # type: ignore[no-untyped-call]
        sae.drop_parallel()
        optimizer.step()
        rate.step()
        sae.unit_norm()


@dataclass(frozen=True)
class Site:
    """The residual stream of a model after a block; the first is 0."""

    gpt: GPT
    block: int
    eot: int  # id of the end-of-text token

    @torch.no_grad()
    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T], on any device -> those that are read [m], and the residual stream there [m, D]."""
        tokens = tokens.to(self.gpt.embedding.weight.device)
        kept = self._kept(tokens)
        return tokens[kept], self._stream(tokens)[kept]

    def changed(self, change: Change) -> Callable[[Tensor], tuple[Tensor, None]]:
        """The model with its residual stream changed where it is read: tokens [B, T] -> logits [B, T, V], None."""

        def model(tokens: Tensor) -> tuple[Tensor, None]:
            x, kept = self._stream(tokens), self._kept(tokens)
            x[kept] = change(x[kept])
            for block in self.gpt.blocks[self.block + 1 :]:
                x = block(x)
            return self.gpt.unembed(x), None

        return model

    def _stream(self, tokens: Tensor) -> Tensor:
        x = self.gpt.embed(tokens)
        for block in self.gpt.blocks[: self.block + 1]:
            x = block(x)
        return x

    def _kept(self, tokens: Tensor) -> Tensor:
        kept = tokens != self.eot
        kept[:, 0] = False
        return kept


Reading = tuple[Tensor, Tensor]  # tokens [m] and the residual stream there [m, D]


def token_means(readings: Iterable[Reading], vocab_size: int) -> tuple[Tensor, Tensor]:
    """Means of the readings: of all [D], and of each token [V, D], NaN for a token that does not occur."""
    sums, counts = torch.zeros(()), torch.zeros(())
    for tokens, x in readings:
        of_token = torch.zeros(vocab_size, x.shape[1], dtype=torch.float64, device=x.device)
        sums = sums.to(x.device) + of_token.index_add_(0, tokens, x.double())
        counts = counts.to(x.device) + tokens.bincount(minlength=vocab_size)
    return (sums.sum(dim=0) / counts.sum()).float(), (sums / counts[:, None]).float()


def unexplained(readings: Iterable[Reading], change: Change, mean: Tensor, of_token: Tensor) -> dict[str, float]:
    """Shares of the variance about `mean` [D]: left by the change (fvu), and within a token (fvu_token).

    of_token: the mean of each token [V, D], which the best lookup of the present token would give.
    """
    total = left = within = 0.0
    for tokens, x in readings:
        total += _squares(x - mean)
        left += _squares(x - change(x))
        within += _squares(x - of_token[tokens])
    return {"fvu": left / total, "fvu_token": within / total}


def _squares(x: Tensor) -> float:
    return float(x.double().square().sum())


def measure(subject: Subject, asked: Features) -> list[dict[str, Any]]:
    """One row: of a TopK autoencoder trained on the training text, what it leaves unexplained of the validation text.

    The loss is that of the model which goes on from the reconstruction. mean_ablation: what it costs to go on from the
    mean, nats per token; dead: share of latents that do not fire; sae_flops: of the training, the model's own left out:
    the products of an activation with all latents and of the active ones with their directions, three times.
    """
    trial, corpus = subject.trial, subject.corpus
    context, vocab_size, seed = trial.config.model.context_length, trial.vocab_size, trial.config.seed
    site, rows = Site(subject.gpt, asked.site, corpus.eot), max(1, EVAL_TOKENS // context)
    batches = batches_of(trial, corpus, rows)
    sae = TopK(trial.config.model.d_model, asked.latents, asked.active).to(subject.device)
    train(sae, (site.read(batches.batch(step)[0])[1] for step in count()), asked.sae_tokens, seed)

    windows = val_windows(*corpus.val(), context, corpus.eot)[0].split(rows)  # type: ignore[no-untyped-call]
    mean, of_token = token_means(map(site.read, windows), vocab_size)
    fired = torch.zeros(asked.latents, dtype=torch.bool, device=subject.device)

    @torch.no_grad()
    def reconstruct(x: Tensor) -> Tensor:
        values, numbers = sae.encode(x)
        fired[numbers[values > FIRES]] = True
        return sae.decode(values, numbers)

    return [
        {
            **subject.scored(site.changed(sae)),
            **unexplained(map(site.read, windows), reconstruct, mean, of_token),
            "dead": 1 - float(fired.float().mean()),
            "mean_ablation": subject.scored(site.changed(mean.expand_as))["delta"],
            "sae_flops": 6.0 * (asked.latents + asked.active) * trial.config.model.d_model * asked.sae_tokens,
        }
    ]
