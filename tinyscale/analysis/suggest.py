"""The next runs of a fitted sweep: candidates like its trials, the best of them, and a sweep file that trains these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.records import read_curve, read_points_table, read_records
from tinyscale.errors import FitError
from tinyscale.fitting.design import REACH, Candidate, Suggestion, suggest
from tinyscale.fitting.points import COLUMNS
from tinyscale.fitting.record import Record
from tinyscale.results.store import Results
from tinyscale.spec.config import BUDGETS, ModelConfig
from tinyscale.spec.costs import flops_per_token, parameters, training_steps
from tinyscale.spec.trial import Trial

LEAST_WIDTH = 4  # of a model


def candidates_from(points: pd.DataFrame, record: Record) -> list[Candidate]:
    """Runs on a grid of the fitted ranges and beyond, at 6 N D FLOPs; for tables of one's own.

    points: the fitted points, columns by the names in the record. A law of N alone keeps the middle ratio D/N.
    """
    n_column, d_column = (record.columns.get(name, COLUMNS[name]) for name in ("n", "d"))
    missing = [column for column in (n_column, d_column) if column not in points]
    if missing:
        raise FitError(f"runs cost 6 N D, and the fitted table has no column {', '.join(missing)}; fit with both")
    n_axis, d_axis = (np.geomspace(points[c].min(), REACH * points[c].max(), 9) for c in (n_column, d_column))
    pairs = [(n, d) for n in n_axis for d in d_axis]
    if set(record.range) == {"n"}:
        ratio = float((points[d_column] / points[n_column]).median())
        pairs = [(n, ratio * n) for n in n_axis]
    if set(record.range) == {"d"}:
        pairs = [(float(points[n_column].median()), d) for d in d_axis]
    return [Candidate({"n": n, "d": d}, 6.0 * n * d, {}) for n, d in pairs]


@dataclass(frozen=True)
class Behind:
    """The trial that a fit's sweep is continued from.

    held: what its widths keep, n_heads or head_dim; unused_seed: one that no trial of the sweep had.
    """

    trial: Trial
    held: str
    unused_seed: int


def candidates_of_trial(behind: Behind, record: Record) -> list[Candidate]:
    """Runs like one trial but wider or narrower (N) and longer or shorter (D), with the fields that make them."""
    model, variables, found = behind.trial.config.model, tuple(record.range), []
    for d_model in _widths(behind, *record.range["n"]) if "n" in variables else [model.d_model]:
        shape = ModelConfig.model_validate({**_shape(behind), "d_model": d_model})
        n = float(parameters(shape, behind.trial.vocab_size).n_non_embedding)
        per_token = flops_per_token(shape, behind.trial.vocab_size)["flops"]
        for tokens in _tokens(behind, shape, record.range.get("d")):
            fields = {"model.d_model": d_model} if "n" in variables else {}
            fields |= {"train.tokens_budget": int(tokens)} if "d" in variables else {}
            sizes = {"n": n, "d": tokens, "c": per_token * tokens}
            found.append(Candidate({name: sizes[name] for name in variables}, per_token * tokens, fields))
    return found


def _shape(behind: Behind) -> dict[str, Any]:
    """The model's fields that are not at their default, without those that follow from its width."""
    model = behind.trial.config.model
    given = model.model_dump(exclude_defaults=True, exclude={"d_model", "n_heads"})
    plain = ModelConfig.model_validate({**given, "d_ff": None, "d_model": model.d_model, "n_heads": model.n_heads})
    if plain.d_ff == model.d_ff:
        del given["d_ff"]
    return {**given, behind.held: getattr(model, behind.held)}


def _widths(behind: Behind, low: float, high: float) -> list[int]:
    """Up to 12 widths that the heads divide, from the smallest model fitted to four times the largest."""
    model, n = behind.trial.config.model, behind.trial.parameters.n_non_embedding
    scale = model.d_model / np.sqrt(n)  # N goes with width squared
    wanted = np.geomspace(scale * np.sqrt(low), scale * np.sqrt(REACH * high), 12)
    heads = model.n_heads * (2 if model.positions == "rotary" else 1)
    step = heads if behind.held == "n_heads" else model.head_dim * (model.n_kv_heads or 1)
    return sorted({max(step * -(-LEAST_WIDTH // step), step * round(width / step)) for width in wanted})


def _tokens(behind: Behind, shape: ModelConfig, fitted: Sequence[float] | None) -> list[float]:
    """Token counts for a size: a grid when the law has D, else what the trial's own budget gives."""
    if fitted is not None:
        return [float(tokens) for tokens in np.geomspace(fitted[0], REACH * fitted[1], 9).round()]
    trial, train = behind.trial, behind.trial.config.train
    return [float(train.batch_tokens * training_steps(shape, train, trial.vocab_size, trial.unique_tokens))]


def sweep_file(name: str, behind: Behind, suggestion: Suggestion) -> dict[str, Any]:
    """A sweep file's content that trains the suggested runs, their varied fields zipped; defaults are left out."""
    given = behind.trial.config.model_dump(mode="json", exclude_defaults=True)
    shape, varied = _shape(behind), list(suggestion.runs[0].fields)
    if "train.tokens_budget" in varied:
        given["train"] = {field: v for field, v in given["train"].items() if field not in BUDGETS}
    if "model.d_model" not in varied:
        shape = {"d_model": behind.trial.config.model.d_model, **shape}
    runs = sorted(suggestion.runs, key=lambda run: run.flops)
    resources = {"resources": given["resources"]} if given.get("resources") else {}
    return {
        "name": f"{name[:75]}-next",  # a name has 80 characters at most
        "title": f"Runs that shrink the interval of {suggestion.target} to {suggestion.shrink:.0%} of its width",
        "base": {"data": given["data"], "model": shape, "train": given["train"]},
        "zip": {field: [run.fields[field] for run in runs] for field in varied},
        "seeds": [behind.unused_seed],
        **resources,
    }


def trial_behind(results: Results, record: Record) -> Behind | None:
    """The last trial of a fit's sweep and arm; None without its sweep."""
    sweeps = [each for each in results.read_sweeps() if each.name == record.origin.sweep]
    trials = [each for sweep in sweeps for each in sweep.entries if each.cell.arm == record.origin.arm]
    if not trials:
        return None
    first, last = (results.load_trial(trials[index].trial) for index in (0, -1))
    one, other = first.config.model, last.config.model
    same_heads = one.n_heads == other.n_heads and one.d_model != other.d_model
    if last.own.model:
        raise FitError(f"only sizes of the built-in GPT are suggested, and these runs are of {last.own.model.name}")
    unused_seed = 1 + max(each.cell.seed for each in trials)
    return Behind(last, "n_heads" if same_heads else "head_dim", unused_seed)


def suggest_from(
    location: str, budget: float, target: str, name: str | None = None
) -> tuple[Suggestion, dict[str, Any] | None]:
    """A suggestion for a saved fit (the first, or the one of that name), and the sweep file that would train it.

    location: results folder or fits.json. None in place of the file when the fit's runs belong to no sweep.
    """
    folder, records = read_records(location)
    usable = [record for record in records if record.is_of_loss]
    asked = [record for record in usable if name in (None, record.name)]
    if not asked:
        names = ", ".join(record.name for record in usable)
        raise FitError(f"no fit {name or 'of a loss law'} to sharpen; there are {names or 'none'}")
    record = asked[0]
    points = read_points_table(folder, record)
    x = np.log(points[[record.columns[variable] for variable in record.range]].to_numpy(float).T)
    curve = read_curve(folder, record)
    behind = trial_behind(Results(folder.path.removesuffix("/fits")), record)
    candidates = candidates_of_trial(behind, record) if behind else candidates_from(points, record)
    made = suggest(curve, x, candidates, budget=budget, target=target)
    return made, sweep_file(record.origin.sweep, behind, made) if behind else None
