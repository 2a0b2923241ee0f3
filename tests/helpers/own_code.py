"""Models of a user's own, as text, and trials of them."""

from __future__ import annotations

from typing import Any

from helpers.trials import model_config, trial_config
from tinyscale.data import prepare
from tinyscale.spec.code import Code
from tinyscale.spec.costs import Counted, parameters
from tinyscale.spec.data_config import DataConfig
from tinyscale.spec.trial import Own, Trial, resolve
from tinyscale.training.loop import train
from tinyscale.training.own_checks import ModelCheck, Reported

BUILT_IN = """\
from tinyscale.training.model import GPT

class Model(GPT):
    def forward(self, tokens):
        return super().forward(tokens)[0]
"""

NANO = '''\
"""A GPT in the manner of nanoGPT: a tied head, learned positions, attention by hand, dropout."""
import math, torch, torch.nn as nn, torch.nn.functional as F

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        D = config.d_model
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.mlp = nn.Sequential(nn.Linear(D, config.d_ff), nn.GELU(), nn.Linear(config.d_ff, D))
        self.dropout = nn.Dropout(config.extra.get("dropout", 0.0))

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.n_heads, -1).transpose(1, 2) for y in self.attn(self.ln_1(x)).split(D, dim=2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(D // self.n_heads)
        scores = scores.masked_fill(torch.ones(T, T, device=x.device).triu(1).bool(), float("-inf"))
        x = x + self.dropout(self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D)))
        return x + self.dropout(self.mlp(self.ln_2(x)))

class Model(nn.Module):
    def __init__(self, config, vocab_size):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f, self.head = nn.LayerNorm(config.d_model), nn.Linear(config.d_model, vocab_size, bias=False)
        self.head.weight = self.wte.weight
        self.apply(self.begin)

    def begin(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))
'''

CONVOLUTIONS = '''\
"""Causal convolutions over a window of tokens, of layers in a file beside, with a penalty on large logits."""
import torch.nn as nn
from layers.causal import Causal

class Model(nn.Module):
    def __init__(self, config, vocab_size):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(Causal(config.d_model, config.extra["window"]) for _ in range(config.n_layers))
        self.head = nn.Linear(config.d_model, vocab_size)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens):
        x = self.embedding(tokens).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x.transpose(1, 2))
        return logits, 0.01 * logits.square().mean()
'''
CAUSAL = """\
import torch.nn as nn, torch.nn.functional as F

class Causal(nn.Module):
    def __init__(self, width, window):
        super().__init__()
        self.window, self.conv = window, nn.Conv1d(width, width, window)

    def forward(self, x):
        return x + F.gelu(self.conv(F.pad(x, (self.window - 1, 0))))
"""

NOTHING = Counted(parameters(model_config(), 257), 1.0, 1.0)


def convolutions() -> Code:
    return Code.of({"my_conv.py": CONVOLUTIONS, "layers/causal.py": CAUSAL})


def counted(code: Code, **model: Any) -> Counted:
    return Counted.of_json(ModelCheck(code, model_config(code="x.py", **model), 257).run())


def own_trial(data: DataConfig, own: Own, **changes: Any) -> Trial:
    """A trial of a second that runs this code."""
    changes |= {"code": own.model.name} if own.model else {}
    return resolve(trial_config(data, **changes), prepare(data).facts, own=own)


def losses(trial: Trial, **options: Any) -> list[tuple[float, float]]:
    outcome = train(trial, prepare(trial.config.data), lambda _: None, **options)
    return [(point.val_loss, point.train_loss) for point in outcome.points]


def refused(files: dict[str, str], **model: Any) -> str:
    """What a check says of a model."""
    said: list[dict[str, Any]] = []
    code = Code.of(files)
    with Reported(said.append, check := ModelCheck(code, model_config(code="x.py", **model), 257)):
        check.run()
    return str(said[0]["wrong"])
