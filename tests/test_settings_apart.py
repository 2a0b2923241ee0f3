"""Which settings tell runs apart follows from the configuration: no axis is pooled as if its values were repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.trials import FACTS, known_trial, trial_config
from tinyscale.analysis.runs import by_setting, read_groups, refuse_mixed
from tinyscale.errors import FitError
from tinyscale.results.schema import point_columns
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepEntry, SweepRecord
from tinyscale.spec.cell import Cell
from tinyscale.spec.code import Code
from tinyscale.spec.settings import FIELDS
from tinyscale.spec.trial import Own, Trial, resolve

BASE: dict[str, Any] = {"schedule": "wsd", "repeats": True, "eval_points": 3}
DATA = {"corpus": "nowhere.txt", "tokenizer": {"kind": "byte"}}

TEACHER_TRIAL = known_trial(seed=7)
TEACHER = TEACHER_TRIAL.identity

# Two values of each field of the model and of the training.
VALUES: dict[str, tuple[Any, Any]] = {
    "d_model": (16, 32), "n_layers": (1, 4), "n_heads": (2, 4), "head_dim": (4, 8), "d_ff": (64, 96),
    "context_length": (32, 64), "positions": ("learned", "rotary"), "norm": ("layernorm", "rmsnorm"),
    "activation": ("gelu", "swiglu"), "tie_embeddings": (False, True), "bias": (False, True),
    "n_kv_heads": (1, 2), "qk_norm": (False, True), "parametrization": ("mup", "completep"),
    "tokens_budget": (5120, 10240), "tokens_per_param": (5, 10),
    "flops_budget": (1e9, 2e9), "epochs_budget": (1, 2), "batch_tokens": (256, 512), "optimizer": ("adamw", "lion"),
    "lr": (1e-2, 2e-2), "min_lr_ratio": (0.1, 0.2), "warmup_fraction": (0.05, 0.1),
    "schedule": ("cosine", "linear"), "decay_fraction": (0.2, 0.3), "branches": ([], [0.5]), "weight_decay": (0.1, 0),
    "betas": ([0.9, 0.95], [0.9, 0.99]), "grad_clip": (1, 0), "precision": ("fp32", "bf16"), "eval_points": (3, 4),
    "code": ("a.py", "b.py"), "extra": ({"window": 16}, {"window": 32}),
    "weight_bits": (None, 4), "teacher": (None, TEACHER), "teacher_weight": (0.5, 1), "temperature": (1, 2),
}  # fmt: skip
# A field of the data moves one of the facts of the text, or the tokens that are scored.
DATA_MOVES = dict.fromkeys(("corpus", "separator", "max_bytes", "zipf", "repeats"), "corpus_hash") | {
    "tokenizer": "tokenizer_hash"
}
MOVE_NOTHING = {"train.repeats", "seed"}  # a permission; what repeats are
AXES = [path for path in FIELDS if not path.startswith("resources.") and path not in MOVE_NOTHING]


def trials_along(path: str) -> dict[Trial, Any]:
    """Trials of two sizes, two seeds and two values of the field, each with its value."""
    part, name = path.split(".")[:2]
    found = {}
    for index in range(2):
        for size in (2, 3):
            for seed in (0, 1):
                changes, data, facts = {**BASE, "n_layers": size, "seed": seed}, dict(DATA), FACTS
                if part == "data":
                    facts = replace(FACTS, **{DATA_MOVES[name]: f"{index}"}) if name in DATA_MOVES else FACTS
                    data |= {"unique_tokens": 2000 + 1000 * index} if name == "unique_tokens" else {}
                else:
                    changes |= {"tokens_budget": None} if name.endswith(("_budget", "_per_param")) else {}
                    changes |= {"n_heads": None} if name == "head_dim" else {}
                    changes |= {name: VALUES[name][index]}
                    changes |= {"d_model": (16, 32)[size - 2]} if name == "n_layers" else {}
                changes |= {"teacher": TEACHER} if name in ("teacher_weight", "temperature") else {}
                changes |= {"code": "a.py"} if name == "extra" else {}
                config = trial_config(data, **changes)
                own = Own(Code.of({"a.py": str(config.model.code)}) if config.model.code else None)
                found[resolve(config, facts, TEACHER_TRIAL if config.train.teacher else None, own)] = index
    return found


@pytest.mark.parametrize("path", AXES)
def test_the_values_of_an_axis_are_kept_apart(path: str, tmp_path: Path) -> None:
    results, along = Results(str(tmp_path)), trials_along(path)
    assert len({trial.identity for trial in along}) == len(along) or path.startswith("data.")
    for trial, index in along.items():
        val_tokens = 100_000 + index if path == "data.val_bytes" else 100_000
        measured = {"step": trial.steps, "tokens": trial.tokens, "val_loss": 3.0, "decayed": True}
        results.write_trial(trial, [point_columns(trial, measured, val_tokens, 400_000)], "finished", None, {})
    entries = tuple(SweepEntry(trial.identity, Cell("base", {}, trial.config.seed)) for trial in along)
    results.write_sweep(SweepRecord("all", "", "", (), entries, {}))
    value_of = {trial.identity: index for trial, index in along.items()}
    (group,) = read_groups(str(tmp_path))
    assert len(group.frame) == len(along)
    for part in by_setting(group):
        try:
            refuse_mixed(part)
        except FitError:
            continue  # of two texts, not fitted together
        values = part.frame["trial"].map(value_of).groupby([part.frame["n_non_embedding"], part.frame["tokens"]])
        assert (values.nunique() == 1).all(), f"{path} is pooled as if its values were seeds"
