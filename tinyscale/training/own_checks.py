"""Check a user's own model and optimizer before anything trains, and count what no formula says of the model.

Planning runs this as a program, so that a file that is broken ends this process alone. It reads a JSON list of checks
from standard input and prints one JSON object per check: what was counted, or what is wrong and where.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinyscale.errors import ConfigError
from tinyscale.spec.code import Code
from tinyscale.spec.config import ModelConfig, TrainConfig
from tinyscale.spec.costs import Counted, Parameters
from tinyscale.training.model import GPT
from tinyscale.training.own import OwnModel, build_own_optimizer, named_in, where_defined
from tinyscale.training.own_widths import check_widths

FAR = 1.0  # nats from ln V, above which an untrained model already believes something
SAME = 1e-6  # difference between logits, relative to the largest, that may come from rounding
CHANGED = 128  # most places at which another token is tried, the first, the middle and the last among them
MODEL = "class Model(nn.Module) with __init__(config, vocab_size) and forward(tokens [B, T]) -> logits [B, T, V]"
OPTIMIZER = "build(named_parameters, config) -> torch.optim.Optimizer"


@dataclass(frozen=True)
class ModelCheck:
    """A user's model of one shape."""

    code: Code
    config: ModelConfig
    vocab_size: int

    def run(self) -> dict[str, Any]:
        """What was counted. ConfigError for what a language model may not do; what the user's code raises is passed."""
        model = self._built()
        self._refuse_other_weights(model, self._built())
        self._refuse_wrong_logits(model)
        self._refuse_far_from_uniform(model)
        counted = self._counted(model)
        self._refuse_leaks(model)
        if self.config.parametrization == "mup":
            counted = replace(counted, summing=check_widths(self.code, self.config, model))
        return counted.as_json()

    def _built(self) -> nn.Module:
        torch.manual_seed(0)
        model = named_in(self.code, "Model")(self.config, self.vocab_size)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"{self._where()}: Model is no nn.Module; expected {MODEL}")
        return model

    def _where(self, method: str | None = None) -> str:
        """`file, line n` of the class, or of a method of it."""
        return where_defined(self.code, "Model", method) or self.code.name

    def _tokens(self, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(self.vocab_size, (rows, self.config.context_length), generator=generator)

    def _refuse_other_weights(self, model: nn.Module, again: nn.Module) -> None:
        others = again.state_dict()
        for name, weight in model.state_dict().items():
            if not torch.equal(weight, others[name]):
                raise ConfigError(
                    f"{self._where('__init__')}: the same seed gives other weights in {name}; sample them by torch's "
                    "own generator, as nn.init does"
                )

    def _refuse_wrong_logits(self, model: nn.Module) -> None:
        for tokens in (self._tokens(2), self._tokens(2)[:, :1]):
            found = model(tokens)
            logits, extra = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
            expected, where = (*tokens.shape, self.vocab_size), self._where("forward")
            if not isinstance(logits, Tensor):
                raise ConfigError(f"{where}: forward returns a {type(logits).__name__}; expected logits {expected}")
            if tuple(logits.shape) != expected or not logits.is_floating_point():
                given = f"{logits.dtype} of shape {tuple(logits.shape)}"
                raise ConfigError(f"{where}: for tokens {tuple(tokens.shape)}, logits are {given}; expected {expected}")
            if extra is not None and not (isinstance(extra, Tensor) and extra.ndim == 0):
                raise ConfigError(f"{where}: beside logits, forward may return one loss, a tensor of no dimension")

    def _refuse_far_from_uniform(self, model: nn.Module) -> None:
        tokens, uniform = self._tokens(2), math.log(self.vocab_size)
        with torch.no_grad():
            logits, _ = OwnModel(model, self.config)(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.roll(-1, 1).flatten()).item()
        if not abs(loss - uniform) < FAR:
            raise ConfigError(
                f"{self._where('__init__')}: the untrained loss is {loss:.3g} nats per token; expected about ln V = "
                f"{uniform:.3g}: give the last layer small weights, such as of std 0.02"
            )

    def _refuse_leaks(self, model: nn.Module) -> None:
        """A later token may change no earlier logit, whatever the weights: some are zero before training."""
        context, generator = self.config.context_length, torch.Generator().manual_seed(2)
        some = torch.randperm(context, generator=generator)[: CHANGED - 3].tolist()
        places = sorted({1, context // 2, context - 1, *some} - {0})
        model.eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        for place in places:
            tokens = self._tokens(1).repeat(2, 1)
            tokens[1, place] = (tokens[1, place] + 1) % self.vocab_size
            with torch.no_grad():
                (logits, other), _ = OwnModel(model, self.config)(tokens)
            moved = (logits - other)[:place].abs().amax(-1) > SAME * logits.abs().max()
            if moved.any():
                first = int(moved.nonzero()[0])
                raise ConfigError(
                    f"{self._where('forward')}: a later token changes an earlier logit: with another token at {place}, "
                    f"the logits at {first} differ; they may depend on tokens 0 to {first} alone"
                )

    def _counted(self, model: nn.Module) -> Counted:
        """Parameters in groups, and FLOPs and kept numbers of a training step on one sequence, per token.

        Attention counts as the T x T matrix products of its plain form, whichever kernel computes it.
        """
        tokens, kept = self._tokens(1), dict[int, int]()
        held = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}

        def keep(tensor: Tensor) -> Tensor:
            if (place := tensor.untyped_storage().data_ptr()) not in held:
                kept[place] = tensor.untyped_storage().nbytes() // 4
            return tensor

        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
            _, loss = OwnModel(model, self.config)(tokens, tokens)
            assert loss is not None, "targets were given"
            loss.backward()
        model.zero_grad()
        flops, context = counter.get_total_flops(), self.config.context_length
        if not flops:
            raise ConfigError(f"{self._where('forward')}: no matrix product is seen, so its FLOPs cannot be counted")
        return Counted(count_parameters(model, self.vocab_size, context), flops / context, sum(kept.values()) / context)


def count_parameters(model: nn.Module, vocab_size: int, context_length: int) -> Parameters:
    """Parameters in groups: those of nn.Embedding, those of the last nn.Linear with V outputs, and the rest."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    heads = [module for module in linear if module.out_features == vocab_size][-1:]
    embedded = {id(weight): weight for module in embeddings for weight in module.parameters()}
    of_head = {id(w): w for module in heads for w in module.parameters() if id(w) not in embedded}
    rest = [weight for weight in model.parameters() if id(weight) not in embedded | of_head]
    of_positions = [m for m in embeddings if m.num_embeddings == context_length != vocab_size]
    return Parameters(
        n_non_embedding=sum(weight.numel() for weight in rest),
        n_embedding=sum(weight.numel() for weight in embedded.values()),
        n_lm_head=sum(weight.numel() for weight in of_head.values()),
        n_matmul=sum(weight.numel() for weight in [*rest, *(head.weight for head in heads)] if weight.ndim > 1),
        n_positions=sum(module.weight.numel() for module in of_positions),
    )


@dataclass(frozen=True)
class OptimizerCheck:
    """A user's optimizer of one model. model: the user's own; None: the GPT."""

    code: Code
    train: TrainConfig
    model: Code | None
    config: ModelConfig
    vocab_size: int

    def run(self) -> dict[str, Any]:
        """Nothing. ConfigError where a step leaves weights as they are, or not finite."""
        torch.manual_seed(0)
        model = (named_in(self.model, "Model") if self.model else GPT)(self.config, self.vocab_size)
        optimizer = build_own_optimizer(self.code, list(model.named_parameters()), self.train)
        given = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if left := [name for name, weight in weights.items() if id(weight) not in given]:
            raise ConfigError(
                f"{self.code.name}: the optimizer has {len(weights) - len(left)} of {len(weights)} parameters, so that "
                f"{left[0]} never trains; give it all, or set requires_grad to False where the model is to keep one"
            )
        before = [weight.detach().clone() for weight in model.parameters()]
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, 1e-3)
        for group in optimizer.param_groups:
            group["lr"] = self.train.lr
        optimizer.step()
        after = list(model.parameters())
        if not all(bool(weight.isfinite().all()) for weight in after):
            raise ConfigError(f"{self.code.name}: a step of the optimizer gives weights that are not finite")
        if all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
            raise ConfigError(f"{self.code.name}: a step of the optimizer moves no weight")
        optimizer.load_state_dict(optimizer.state_dict())
        return {}


def check_of(written: Mapping[str, Any]) -> ModelCheck | OptimizerCheck:
    """What planning wrote."""
    code, config = Code.of_json(written["code"]), ModelConfig.model_validate(written["config"])
    if written["train"] is None:
        return ModelCheck(code, config, written["vocab_size"])
    model = Code.of_json(written["model"]) if written["model"] else None
    return OptimizerCheck(code, TrainConfig.model_validate(written["train"]), model, config, written["vocab_size"])


class Reported:
    """A context manager that says what a check raises, with the last line of the user's own that led there."""

    def __init__(self, say: Callable[[dict[str, Any]], None], check: ModelCheck | OptimizerCheck) -> None:
        self.say, self.check = say, check

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        self.say({"wrong": str(error) if isinstance(error, ConfigError) else self._located(error, trace)})
        return True

    def _located(self, error: BaseException, trace: TracebackType | None) -> str:
        own, is_model = self.check.code, isinstance(self.check, ModelCheck)
        lines = [frame for frame in traceback.extract_tb(trace) if frame.filename in own.files]
        where = f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else own.name
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
        said = ", ".join([said, *getattr(error, "__notes__", [])])
        return f"{where}: {said}; expected {MODEL if is_model else OPTIMIZER}"


def main() -> None:
    """Run the checks on standard input. What the user's code prints goes to standard error."""
    out = sys.stdout

    def say(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=out, flush=True)

    with redirect_stdout(sys.stderr):
        for written in json.load(sys.stdin):
            check = check_of(written)
            with Reported(say, check):
                say({"counted": check.run()})


if __name__ == "__main__":
    main()
