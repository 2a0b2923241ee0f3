"""A user's own code at planning: read once, checked once per shape in a process of its own, and given to each trial."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyscale.errors import ConfigError, ResultsError
from tinyscale.machine import cache_folder, own_python
from tinyscale.spec.code import Code, read_code
from tinyscale.spec.config import OwnOptimizer, TrialConfig
from tinyscale.spec.costs import Counted
from tinyscale.spec.grid import Variant
from tinyscale.spec.settings import OPTIMIZER
from tinyscale.spec.trial import Own
from tinyscale.storage import Folder

CHECKS = 2  # version of the checks: another one checks again
KEPT = "own_code.json"  # in the cache: key of a check that passed -> what was counted
SECONDS = 300.0  # that a check may take


@dataclass(frozen=True)
class OwnCode:
    """The code of a sweep's own by path, and what was counted of its models by the key of their check."""

    codes: Mapping[str, Code] = field(default_factory=dict)
    counted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, config: TrialConfig, vocab_size: int) -> Own:
        """What a trial of this configuration runs."""
        optimizer = config.train.optimizer
        model = None if config.model.code is None else self.codes[config.model.code]
        found = self.counted[_key(_model_check(model, config, vocab_size))] if model else None
        return Own(
            model,
            Counted.of_json(found) if found is not None else None,
            self.codes[optimizer.code] if isinstance(optimizer, OwnOptimizer) else None,
        )


def read_own_code(variants: Iterable[tuple[Variant, int]], notify: Callable[[str], None]) -> OwnCode:
    """Read and check what the variants, each with its vocabulary size, name. ConfigError with where it was named.

    notify is called before checks, which take seconds.
    """
    codes: dict[str, Code] = {}
    checks: dict[str, tuple[dict[str, Any], str]] = {}  # by key, with where the code was named
    for variant, vocab_size in variants:
        config, optimizer = variant.config, variant.config.train.optimizer
        if (path := config.model.code) is not None:
            where = variant.where("model.code")
            check = _model_check(_read(codes, path, where), config, vocab_size)
            checks.setdefault(_key(check), (check, where))
        if isinstance(optimizer, OwnOptimizer):
            where, model = variant.where(f"{OPTIMIZER}.code", OPTIMIZER), codes[path] if path is not None else None
            check = _optimizer_check(_read(codes, optimizer.code, where), model, config, vocab_size)
            checks.setdefault(_key(check), (check, where))
    return OwnCode(codes, _passed(checks, notify))


def _read(codes: dict[str, Code], path: str, where: str) -> Code:
    if path not in codes:
        try:
            codes[path] = read_code(Path(path))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return codes[path]


def _model_check(code: Code, config: TrialConfig, vocab_size: int) -> dict[str, Any]:
    shape = {**config.model.model_dump(mode="json"), "code": code.name}  # wherever the file lies
    return {"code": code, "config": shape, "vocab_size": vocab_size, "train": None, "model": None}


def _optimizer_check(code: Code, model: Code | None, config: TrialConfig, vocab_size: int) -> dict[str, Any]:
    optimizer = {**config.train.model_dump(mode="json")["optimizer"], "code": code.name}
    train = {"optimizer": optimizer, "lr": 1e-3, "tokens_budget": 1, "batch_tokens": config.train.batch_tokens}
    shape = {**config.model.model_dump(mode="json"), "code": model and model.name}
    return {"code": code, "config": shape, "vocab_size": vocab_size, "train": train, "model": model}


def _written(check: Mapping[str, Any], *, sources: bool) -> dict[str, Any]:
    """The check as JSON holds it."""
    codes = {name: check[name] and check[name].as_json(sources=sources) for name in ("code", "model")}
    return {**check, **codes}


def _key(check: Mapping[str, Any]) -> str:
    versions = [CHECKS, importlib.metadata.version("torch")]
    described = json.dumps([_written(check, sources=False), versions], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:24]


def _passed(checks: Mapping[str, tuple[dict[str, Any], str]], notify: Callable[[str], None]) -> dict[str, Any]:
    """What was counted, by the keys of the checks; those that passed before are not run again."""
    if not checks:
        return {}
    folder = Folder.at(cache_folder())
    try:
        kept = json.loads(folder.read(KEPT))
        known = {key: kept[key] for key in checks if key in kept}
    except (OSError, ValueError, TypeError):  # none yet, or a damaged one
        kept, known = {}, {}
    if missing := {key: check for key, check in checks.items() if key not in known}:
        notify("checking the code of your own")
        known |= dict(zip(missing, _run(list(missing.values())), strict=True))
        with suppress(ResultsError):  # without room it is checked again the next time
            folder.write(KEPT, json.dumps({**kept, **known}, indent=1).encode())
    return known


def _run(checks: list[tuple[dict[str, Any], str]]) -> list[Any]:
    """Run the checks in one process. ConfigError with where the code was named for the first that fails."""
    (python, path), asked = own_python(), json.dumps([_written(check, sources=True) for check, _ in checks])
    program = [*python, "-m", "tinyscale.training.own_checks"]
    try:
        done = subprocess.run(
            program,
            input=asked.encode(),
            capture_output=True,
            env=os.environ | path,
            timeout=SECONDS * len(checks),
            check=False,
        )
        output, ended = done.stdout, f"ended with exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, ended = error.stdout or b"", f"took more than {SECONDS:g} s"
    found = [json.loads(line) for line in output.splitlines()]
    for (check, where), said in zip(checks, found, strict=False):
        if wrong := said.get("wrong"):
            raise ConfigError(f"{where}: {wrong}")
        assert "counted" in said, check
    if len(found) < len(checks):
        check, where = checks[len(found)]
        raise ConfigError(f"{where}: {check['code'].name}: its check {ended}; run the file alone to see why")
    return [said["counted"] for said in found]
