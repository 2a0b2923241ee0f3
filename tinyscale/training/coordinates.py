"""How far a few steps move a model's activations: the coordinate check of Yang et al. 2022 (2203.03466), appendix D.1.

Where one learning rate is to serve every size, the movements must not depend on the size. `planning/transfer.py` runs
this as a program, so that planning needs no torch. It reads a JSON list of configurations from standard input and
prints one JSON object for each. It needs no text: its tokens are random.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor
from torch.func import functional_call

from tinyscale.spec.config import TrialConfig
from tinyscale.training.model import GPT
from tinyscale.training.optim import build_optimizer, set_rate
from tinyscale.training.parametrization import is_matrix

STEPS = 4
ROWS, POSITIONS, VOCAB_SIZE = 8, 32, 257
LR = 1e-3  # small, so that the movements are proportional to it


def movements(config: TrialConfig) -> dict[str, float]:
    """How far STEPS steps at LR move three activations, on the CPU in fp32: root mean squares over tokens.

    stream: the last residual stream; logits; blocks: the last residual stream where the matrices of the blocks alone
    have moved.
    """
    torch.manual_seed(config.seed)
    gpt = GPT(config.model, VOCAB_SIZE)
    optimizer = build_optimizer(gpt, config.train, config.model)
    set_rate(optimizer, torch.tensor(LR))
    tokens = torch.randint(VOCAB_SIZE, (ROWS, min(POSITIONS, config.model.context_length) + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    initial = {name: weight.detach().clone() for name, weight in gpt.named_parameters()}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = gpt(inputs, targets)[1]
        assert loss is not None, "targets are given"
        torch.autograd.backward(loss)
        optimizer.step()
    final = {name: weight.detach() for name, weight in gpt.named_parameters()}
    matrices = {name: weight for name, weight in final.items() if is_matrix(name, weight, "blocks.")}
    stream, logits = _activations(gpt, initial, inputs)
    moved_stream, moved_logits = _activations(gpt, final, inputs)
    by_blocks, _ = _activations(gpt, initial | matrices, inputs)
    moved = {"stream": moved_stream - stream, "logits": moved_logits - logits, "blocks": by_blocks - stream}
    return {name: change.square().mean().sqrt().item() for name, change in moved.items()}


@torch.no_grad()
def _activations(gpt: GPT, weights: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The last residual stream [B, T, D] and the logits [B, T, V] of a model with these weights."""
    seen: list[Tensor] = []
    handle = gpt.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    logits: Tensor = functional_call(gpt, weights, (inputs,))[0]
    handle.remove()
    return seen[0], logits


def main() -> None:
    """Measure the configurations on standard input."""
    for config in json.load(sys.stdin):
        print(json.dumps(movements(TrialConfig.model_validate(config))), flush=True)


if __name__ == "__main__":
    main()
