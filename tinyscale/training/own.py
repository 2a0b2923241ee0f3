"""A user's own model and optimizer: loaded from the text that a trial carries, and put in the built-in ones' place.

Only that text runs, and what it imports from files of its own: the hash in the trial's identity is the hash of it.
"""

from __future__ import annotations

import ast
import functools
import importlib.abc
import importlib.util
import linecache
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tinyscale.errors import ConfigError
from tinyscale.spec.code import Code
from tinyscale.spec.config import ModelConfig, TrainConfig
from tinyscale.spec.trial import Trial
from tinyscale.training.model import GPT, LanguageModel, mean_nats


class OwnModel(LanguageModel):
    """A user's model, called as the GPT is.

    Its forward takes tokens [B, T] and returns logits [B, T, V], or these and a loss [] that training adds to its own.
    summing: names of its parameters that sum over the width, as `Counted` has them.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, summing: Collection[str] = ()) -> None:
        super().__init__()
        self.model, self.config, self.summing = model, config, summing

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As `GPT.forward`; the loss has the model's own added to it while the model trains."""
        found = self.model(tokens)
        logits, extra = found if isinstance(found, tuple) else (found, None)
        if targets is None:
            return logits, None
        nats = mean_nats(logits, targets)
        return logits, nats if extra is None else nats + extra


def build_model(trial: Trial) -> GPT | OwnModel:
    """The trial's untrained model, by torch's current random state."""
    config = trial.config.model
    if trial.own.model is None:
        return GPT(config, trial.vocab_size)
    assert trial.own.counted or config.parametrization == "standard", "the check of a model under mup names what sums"
    summing = trial.own.counted.summing if trial.own.counted else ()
    return OwnModel(named_in(trial.own.model, "Model")(config, trial.vocab_size), config, summing)


def build_own_optimizer(
    code: Code, named: Sequence[tuple[str, nn.Parameter]], train: TrainConfig
) -> torch.optim.Optimizer:
    """The optimizer that a user's `build` makes; the schedule sets its lr, to that times the group's `scale` if any.

    ConfigError where that is no optimizer of torch.
    """
    optimizer = named_in(code, "build")(list(named), train)
    if not isinstance(optimizer, torch.optim.Optimizer):
        what = type(optimizer).__name__
        raise ConfigError(f"{code.name}: build returns a {what}; it should be a torch.optim.Optimizer")
    return optimizer


def named_in(code: Code, name: str) -> Any:
    """What a user's file calls by this name. ConfigError without it."""
    found = getattr(_module_of(code, code.sources), name, None)
    if found is None:
        what = "class Model(nn.Module)" if name == "Model" else f"function {name}(named_parameters, config)"
        raise ConfigError(f"{code.name}: defines no {name}; it should define a {what}")
    return found


def where_defined(code: Code, name: str, method: str | None = None) -> str | None:
    """`file, line n` of a class of a user's code, or of a method that it has. None where the code defines no such."""
    for file, text in zip(code.files, code.sources, strict=True):
        for found in (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name):
            methods = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == method]
            return f"{file}, line {methods[0].lineno if methods else found.lineno}"
    return None


@functools.lru_cache(maxsize=16)
def _module_of(code: Code, sources: tuple[str, ...]) -> ModuleType:
    """The user's file as a module. Whatever it raises is passed on."""
    assert sources, "a trial that is trained carries its code, and one in the results has a copy there"
    with _own_imports(code):
        spec = importlib.util.spec_from_loader(f"own_{code.hash}", _Loader(code, code.name))
        assert spec is not None, "a loader was given"
        assert spec.loader is not None, "a loader was given"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look it up
        spec.loader.exec_module(module)
        return module


class _Loader(importlib.abc.InspectLoader):
    """Runs one file of a user's code, from its text; an empty one for a folder without __init__.py."""

    def __init__(self, code: Code, file: str) -> None:
        self.file, self.text = file, dict(zip(code.files, code.sources, strict=True)).get(file, "")

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return self.text

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002
        return self.file.endswith("__init__.py")

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        lines = self.text.splitlines(keepends=True)
        linecache.cache[self.file] = (len(self.text), None, lines, self.file)  # for tracebacks
        return compile(self.text, self.file, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the files that a user's code imports, before any others of these names."""

    def __init__(self, code: Code) -> None:
        self.code = code

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        path = fullname.replace(".", "/")
        file = next((each for each in self.code.files[1:] if each in (f"{path}.py", f"{path}/__init__.py")), None)
        if file is None and any(each.startswith(f"{path}/") for each in self.code.files[1:]):
            file = f"{path}/__init__.py"
        return importlib.util.spec_from_loader(fullname, _Loader(self.code, file)) if file else None


@contextmanager
def _own_imports(code: Code) -> Iterator[None]:
    """Imports of the code's own files find these. Afterwards their names are free again for those of other code."""
    finder, tops = _Finder(code), {file.partition("/")[0].removesuffix(".py") for file in code.files[1:]}

    def take_out() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in tops}

    before = take_out()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        take_out()
        sys.modules.update(before)
