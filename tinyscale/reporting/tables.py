"""The tables of the report: each is written whole as a CSV, and the page shows some of its columns."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from tinyscale.analysis.compare import Contrast
from tinyscale.analysis.forecasts import Registration, calibration_table, forecasts_table
from tinyscale.analysis.ranks import ranks_table
from tinyscale.analysis.records import contrasts_table, parameters_table
from tinyscale.fitting.curve import Curve
from tinyscale.fitting.frontier import frontier
from tinyscale.fitting.points import varying
from tinyscale.fitting.record import Record
from tinyscale.formatting import compact, duration
from tinyscale.results.launches import LaunchRecord, forecast_error
from tinyscale.results.schema import MEASUREMENT_COLUMNS
from tinyscale.results.store import Results, is_final, over_seeds
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.config import BUDGETS
from tinyscale.spec.measurement import KINDS
from tinyscale.spec.state import State

# Of a measurement's columns, those that the page has no room for: names, errors, and what all rows share.
NO_VALUE = (
    "trial", "measurement", "kind", "state", "reason", "loss_se", "unchanged_loss", "delta_se", "bits_per_byte",
    "val_tokens", "wall_seconds", "schema_version",
)  # fmt: skip
# What a reader asks of runs before their loss.
SETUP = (
    "corpus", "tokenizer", "vocab_size", "unique_tokens", "val_tokens", "d_model", "n_layers", "n_heads",
    "context_length", "positions", "norm", "activation", "parametrization", "n_non_embedding", "tokens", "batch_tokens",
    "optimizer", "lr", "schedule", "weight_decay", "precision", "seed",
)  # fmt: skip
TRIAL_HEADS = {
    "n_non_embedding": "N", "tokens": "tokens", "flops": "FLOPs", "val_loss": "loss", "val_loss_se": "± se",
    "wall_seconds": "seconds",
}  # fmt: skip
COUNTED = (
    "n_non_embedding",
    "tokens",
    "unique_tokens",
    "val_tokens",
    "flops",
    "c",
    "n",
    "n_low",
    "n_high",
    "d",
    "d_low",
    "d_high",
)


@dataclass(frozen=True)
class Table:
    """A table of the page: stem of its CSV, all that the CSV holds, and column -> heading of what the page shows.

    missing: what the page shows for a value that is not there; anchors: of the rows, what a link to each names; folded:
    what the page shows in place of the table until it is opened.
    """

    name: str
    frame: pd.DataFrame
    columns: Mapping[str, str]
    caption: str
    missing: str = ""
    anchors: tuple[str, ...] = ()
    folded: str = ""
    kind = "table"

    @property
    def rows(self) -> list[list[tuple[str, bool]]]:
        """What the page shows, as text, and whether it is a number."""
        return [
            [(self._cell(name, row[name]), not isinstance(row[name], str)) for name in self.columns]
            for row in self.frame.to_dict("records")
        ]

    def _cell(self, name: str, value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return self.missing
        return _in_short(value, counted=name in COUNTED)


def _in_short(value: Any, *, counted: bool) -> str:
    """A value as the page shows it; counted: one of many, such as tokens."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "open"
    if counted or (isinstance(value, float) and abs(value) >= 1e5):
        return compact(float(value))
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.4g}"


def anchor(sweep: str, trial: str) -> str:
    """What a link to a trial's row on the page names: a trial may belong to several sweeps."""
    return f"{sweep}-{trial}"


def facts(name: str, rows: Sequence[tuple[str, Any]], caption: str) -> Table:
    """A table of two columns: what, and its value."""
    frame = pd.DataFrame(rows, columns=["what", "value"], dtype=object)
    return Table(name, frame, {"what": "", "value": ""}, caption)


def parameters_of(record: Record) -> Table:
    """Each parameter of a fit with its interval."""
    frame = parameters_table([record])
    columns = {"parameter": "parameter", "value": "value", "low": "95 % low", "high": "95 % high"}
    caption = f"Parameters, with 95 % intervals ({record.intervals}). An end that the data do not set is open."
    return Table(f"{record.name}-parameters", frame, columns, caption, missing="open")


def evidence_of(record: Record) -> Table:
    """How well a fit predicts what it has not seen, and whether the search for it can be trusted."""
    held, what = record.held_out, record.form.predicts
    rows: list[tuple[str, Any]] = [("held out", "nothing")]
    if held:
        rows = [
            *((f"held out: {name.upper()}", compact(value)) for name, value in held.size.items()),
            (f"{what} predicted there from the {held.fitted_sizes} smaller", held.predicted),
            (f"{what} measured there", held.actual),
            ("error of the law (%)", held.error_percent),
            (f"error of carrying the last {what} forward (%)", held.carry_forward_percent),
        ]
    if held and held.runs:
        error, carried = held.errors
        rows += [
            ("runs held out, the top fifth of compute", held.runs),
            ("their error, root mean square (%)", error),
            (f"that of carrying the last {what} forward (%)", carried),
            ("runs inside the 95 % interval", held.inside),
        ]
    rows += [("runs fitted", record.points), *((f"column read as {n}", c) for n, c in record.columns.items())]
    if record.noise and record.certificate:
        rows += [
            ("different sizes", record.sizes),
            ("noise of a run (%)", 100 * record.noise.sd),
            ("starts of the search that agree (%)", 100 * record.certificate.share_of_starts),
            ("gradient at the optimum", record.certificate.gradient_norm),
        ]
    caption = (
        "The test of the law: the largest size (of joint laws, the top fifth of compute) is held out and predicted "
        "from the smaller ones. A law is worth having when it errs less than assuming that the loss stays where it "
        "was. Noise: spread of single runs about the law."
    )
    return facts(f"{record.name}-evidence", rows, caption)


def frontier_of(record: Record, curve: Curve, runs: pd.DataFrame) -> Table:
    """Compute-optimal runs by a joint law, from the smallest fitted run's compute to 100 times the largest's."""
    flops = 6 * runs["n"] * runs["d"]
    decades = np.arange(np.floor(np.log10(flops.min())), np.ceil(np.log10(flops.max())) + 3)
    frame = frontier(curve, 10.0**decades)
    frame["times_beyond"] = frame["c"] / flops.max()
    columns = {
        "c": "C (FLOPs)", "n": "N*", "n_low": "low", "n_high": "high", "d": "D*", "d_low": "low", "d_high": "high",
        "loss": "loss", "loss_low": "low", "loss_high": "high", "times_beyond": "C / largest C",
    }  # fmt: skip
    caption = (
        "The compute-optimal run of each budget by this law, with C = 6 N D and 95 % ends. The further C / largest C, "
        "of those fitted, is above 1, the more the row is a guess."
    )
    return Table(f"{record.name}-frontier", frame, columns, caption)


def contrasts_of(sweep: str, contrasts: Sequence[Contrast]) -> Table:
    """Each arm of a sweep against its base."""
    frame = contrasts_table([each.as_json() for each in contrasts])
    columns = {
        "arm": "arm", "base": "against", "difference": "difference", "low": "95 % low", "high": "95 % high",
        "unit": "unit", "p": "p", "pairs": "pairs", "more_seeds": "more seeds", "compute": "worth in compute",
        "compute_low": "95 % low", "compute_high": "95 % high",
    }  # fmt: skip
    caption = (
        "Arms against the base: runs of the same size, tokens and seed are paired; below zero the arm is better. "
        "Intervals and p are corrected for the number of arms. More seeds: how many would settle at 95 % what is open, "
        "if the difference is the one seen. Worth in compute: the factor of compute that the base would need to do as "
        "well, by a law with shared exponents; empty where the sizes are too few for one."
    )
    return Table(f"{sweep}-contrasts", frame, {k: v for k, v in columns.items() if k in frame}, caption)


def multipliers_by_size(sweep: str, contrasts: Sequence[Contrast]) -> Table:
    """Compute multipliers of each arm by size, with the trends that are seen."""
    found = [(each.arm, kind, one) for each in contrasts for kind, one in each.multipliers.items()]
    rows = [
        {"arm": arm, "kind": kind, "n": float(size), **vars(value)}
        for arm, kind, one in found
        for size, value in one.by_size.items()
    ]
    columns = {"arm": "arm", "kind": "spent", "n": "N", "value": "multiplier", "low": "95 % low", "high": "95 % high"}
    caption = (
        "Compute multipliers by size: what the base would spend for the arm's loss, by the base's law, over what the "
        "arm spends. FLOPs: what the loss alone is worth. Seconds: that times the tokens per second of the arm over "
        "those of the base, which compare where both ran on like machines. No interval is corrected for their number."
    )
    trends = "".join(f" {arm}, {kind}: {one.said}." for arm, kind, one in found if one.said)
    return Table(f"{sweep}-multipliers", pd.DataFrame(rows), columns, caption + trends)


def ranks_of(sweep: str, contrasts: Sequence[Contrast]) -> Table:
    """Whether the order of the arms at each smaller size is that at the largest; no rows below three arms."""
    columns = {
        "n": "N", "arms": "arms", "kendall": "Kendall's tau", "spearman": "Spearman's rho", "best": "best arm",
        "regret": "regret",
    }  # fmt: skip
    caption = (
        "The order of the arms at each smaller size against that at the largest: 1 is the same order, -1 the reverse. "
        "Regret: how much more loss the best arm there has at the largest size than the best one there."
    )
    return Table(f"{sweep}-ranks", ranks_table([each.as_json() for each in contrasts]), columns, caption)


def final_losses(sweep: SweepRecord, points: pd.DataFrame) -> Table:
    """Mean and spread over seeds of the losses at the end of the schedule."""
    final = points[is_final(points)]
    axes = [name for name in sweep.axis_columns if name not in BUDGETS]
    arm = ["arm"] if final["arm"].nunique() > 1 else []
    by = [*arm, *(name for name in axes if name in final), "n_non_embedding", "tokens", "flops"]
    frame = over_seeds(final, list(dict.fromkeys(by))).sort_values(list(dict.fromkeys(by)), ignore_index=True)
    heads = {"n_non_embedding": "N", "flops": "FLOPs", "val_loss_mean": "loss", "val_loss_std": "± sd of seeds"}
    shown = [str(name) for name in frame if name != "bits_per_byte_std" and frame[name].notna().any()]
    columns = {name: heads.get(name, name.removesuffix("_mean")) for name in shown}
    caption = (
        "Loss on the held-out text at the end of each run, in nats per token, as mean over seeds. N counts the "
        "parameters of the blocks (n_non_embedding); bits_per_byte compares across tokenizers."
    )
    return Table(f"{sweep.name}-final", frame, columns, caption)


def setup_of(record: SweepRecord, points: pd.DataFrame) -> Table:
    """What all runs of a sweep have in common, and how far they go in what they differ."""
    final = points[is_final(points)]
    rows = [(name, _spread(final[name])) for name in SETUP if name in final and final[name].notna().any()]
    return facts(f"{record.name}-setup", rows, "What the runs are: a value that all share, or the first to the last.")


def _spread(values: pd.Series[Any]) -> str:
    """The one value of a column, or its range with how many there are."""
    there = values.dropna()
    distinct = sorted(there.astype(str).unique()) if there.dtype == object else sorted(there.unique())
    words = [_in_short(each, counted=values.name in COUNTED) for each in distinct]
    if len(words) == 1:
        return words[0]
    if there.dtype == object or len(words) == 2:
        return ", ".join(words)
    return f"{words[0]} to {words[-1]} ({len(words)} values)"


def trials_of(record: SweepRecord, points: pd.DataFrame) -> Table:
    """The last point of each trial, with what sets it apart."""
    last = points[points["val_loss"].notna()].groupby("trial", sort=False).tail(1)
    apart = varying(last, list(dict.fromkeys(("state", "arm", *record.axis_columns, "lr", "seed"))))
    columns = {name: TRIAL_HEADS.get(name, name) for name in ("trial", *apart, *TRIAL_HEADS) if name in last}
    return Table(
        f"{record.name}-trials",
        last[list(columns)].reset_index(drop=True),
        columns,
        "The last point of each trial. A point of the figures above links to its row.",
        anchors=tuple(anchor(record.name, trial) for trial in last["trial"]),
        folded=f"All {len(last)} trials",
    )


def measured_of(record: SweepRecord, kind: str, rows: pd.DataFrame) -> Table:
    """What was measured of one kind: the mean over seeds of each value, for each cell and combination of its fields.

    rows: as `measurement_rows` gives them.
    """
    own = [name for name, *_ in MEASUREMENT_COLUMNS if name in rows]
    fields = [name for name in KINDS[kind].model_fields if name in own and rows[name].nunique(dropna=False) > 1]
    parts = [name for name in ("layer", "head") if name in own]  # numbers that name a part; of a whole model, its best
    rows = rows.assign(**{name: rows[name].where(rows["component"] != "model") for name in parts})
    texts = [name for name in own if not is_numeric_dtype(rows[name])]
    labels = [name for name in (*texts, *parts) if name not in (*KINDS[kind].model_fields, *NO_VALUE)]
    cell = [name for name in ("arm", *record.axis_columns) if name in rows and rows[name].nunique() > 1]
    by = list(dict.fromkeys((*cell, *fields, *labels))) or ["kind"]  # of one trial, asked once
    values = [name for name in own if name not in (*by, *KINDS[kind].model_fields, *NO_VALUE)]
    means = rows.groupby(by, dropna=False, sort=False)[values].mean().reset_index()
    means.insert(len(by), "seeds", rows.groupby(by, dropna=False, sort=False)["trial"].nunique().to_numpy())
    caption = f"Measured of the finished trials, mean over seeds. All rows are in tables/{record.name}-{kind}-rows.csv."
    return Table(f"{record.name}-{kind}", means, {str(name): str(name) for name in means}, caption)


def costs_of(sweep: SweepRecord, points: pd.DataFrame, states: Counter[State]) -> Table:
    """Training time, tokens and FLOPs of all of a sweep's trials, and how fast they went."""
    last = points[points["val_loss"].notna()].groupby("trial").last()
    each = last["wall_seconds"] / last["fused"].fillna(1)  # trials trained as one batched model share its seconds
    seconds = float(each.sum())
    gpu_hours = float((each * last["gpu"] * last["workers"]).sum() / 3600)
    rows: list[tuple[str, Any]] = [(f"trials {state}", number) for state, number in states.items()]
    rows += [
        ("training seconds, all trials", seconds),
        ("training time, all trials", duration(seconds)),
        *([("GPU-hours", gpu_hours)] if gpu_hours else []),
        ("core-hours", float((each * last["cpu"] * last["workers"]).sum() / 3600)),
        ("training tokens", float(last["tokens"].sum())),
        ("training FLOPs", float(last["flops"].sum())),
    ]
    if seconds:
        rows += [
            ("tokens a second of training", float(last["tokens"].sum() / seconds)),
            ("FLOPs a second of training", float(last["flops"].sum() / seconds)),
        ]
    return facts(f"{sweep.name}-costs", rows, "What the trials took, evaluation included, from their own rows.")


def positions_of(sweep: str, falls: pd.DataFrame) -> Table:
    """Up to how many tokens of a document each curve of loss against position falls."""
    arm = {"arm": "arm"} if falls["arm"].nunique() > 1 else {}
    columns = arm | {
        "context_length": "context_length", "n_non_embedding": "N", "beyond": "beyond tokens", "fall": "loss falls by",
        "low": "95 % low", "high": "95 % high", "flat": "flat there", "seeds": "seeds",
    }  # fmt: skip
    caption = (
        "Where a longer context stops helping: the loss of targets with so many tokens of their document before them "
        "(and less than twice as many), minus the loss of those with the most. Flat: the interval's upper end is under "
        "1 % of the loss; where no row of a curve is flat, its last is shown. Each seed is compared with itself; the "
        "intervals hold the spread of seeds, not that of the validation text, which all share."
    )
    return Table(f"{sweep}-positions-falls", falls, columns, caption)


def launches_of(sweep: str, launches: Sequence[LaunchRecord]) -> Table:
    """How busy each launch of a sweep kept its slots, and how far off its forecast was."""
    rows = [
        {
            "launched": each.launched.removesuffix("+00:00").replace("T", " "),
            "trials": each.trials,
            **{state: each.states.get(state, 0) for state in ("finished", "failed", "diverged")},
            "slots": each.slots,
            "wall_seconds": each.wall_seconds,
            "train_seconds": each.train_seconds,
            "expected_seconds": each.expected_seconds,
            "forecast_error_percent": None if error is None else 100 * error,
            "efficiency": each.efficiency,
            "overhead_per_trial": each.overhead_per_trial,
            "stopped": each.stopped,
        }
        for each in launches
        if each.sweep == sweep
        for error in [forecast_error(each.expected_seconds, each.wall_seconds, each.stopped)]
    ]
    columns = {
        "launched": "launched (UTC)", "trials": "trials", "finished": "finished", "failed": "failed", "slots": "slots",
        "wall_seconds": "wall (s)", "train_seconds": "training (s)", "forecast_error_percent": "forecast (%)",
        "efficiency": "efficiency", "overhead_per_trial": "overhead (s)",
    }  # fmt: skip
    caption = (
        "The launches. Efficiency: training seconds over the seconds of all slots, from the first trial's begin to the "
        "last one's end. Overhead: seconds per trial that a process spends outside training. Forecast: expected over "
        "real wall time, less one. A launch that was killed leaves no row here, but keeps the trials it finished."
    )
    return Table(f"{sweep}-launches", pd.DataFrame(rows), columns, caption)


def dropped_of(sweep: str, dropped: Mapping[tuple[str, str], Mapping[str, int]]) -> Table:
    """Rows that no fit used, by reason."""
    rows = [(arm, why, n) for (name, arm), reasons in dropped.items() if name == sweep for why, n in reasons.items()]
    frame = pd.DataFrame(rows, columns=["arm", "reason", "rows"])
    caption = (
        "Rows that no fit used. Losses before the end of a schedule are not those of a shorter run, so only the last "
        "point of a finished trial counts."
    )
    return Table(f"{sweep}-dropped", frame, {"arm": "arm", "reason": "reason", "rows": "rows"}, caption)


def forecasts_of(made: Sequence[Registration]) -> Table:
    """Each registered forecast, and what came of it."""
    frame = forecasts_table(made)
    frame["registered"] = frame["registered"].str.removesuffix("+00:00").str.replace("T", " ")
    columns = {
        "name": "file", "registered": "registered (UTC)", "label": "run", "n": "N", "d": "D",
        "times_beyond": "x compute", "forecast": "forecast", "low": "95 % low", "high": "95 % high",
        "measured": "measured", "error_percent": "error (%)", "runs": "runs", "inside": "inside",
    }  # fmt: skip
    caption = (
        "Losses that were written down before the runs, each with the hash of the rows it rests on, the commit and the "
        "time, in forecasts/. x compute: the run's FLOPs over those of the largest fitted run. Measured: the mean over "
        "the runs, empty before there are any. Error: forecast over measured, less one. Inside: how many of the runs "
        "the 95 % interval holds; it is the interval of a single run."
    )
    return Table("forecasts", frame, columns, caption)


def calibration_of(made: Sequence[Registration]) -> Table:
    """How many runs the intervals of registered forecasts held, by distance in compute."""
    columns = {
        "distance": "x compute", "forecasts": "forecasts", "runs": "runs", "inside": "inside",
        "inside_percent": "inside (%)", "mean_error_percent": "mean error (%)",
        "largest_error_percent": "largest error (%)",
    }  # fmt: skip
    caption = (
        "Calibration: of intervals that mean what they say, 95 % of the runs are inside at every distance. Errors are "
        "without their sign. Runs of one forecast, such as seeds, share most of its error."
    )
    return Table("forecasts-calibration", calibration_table(made), columns, caption)


def provenance_of(store: Results) -> Table:
    """Where the rows come from: what all share, then what differs between launches and machines that trained trials."""
    found = store.provenances().items()
    origins = [{"trials": times, **_origin(json.loads(text))} for text, times in found]
    names = dict.fromkeys(name for origin in origins for name in origin)
    differing = {name for name in names if len({origin.get(name) for origin in origins}) > 1}
    differing |= {"trials"} if len(origins) > 1 else set()
    rows = [("all", name, origins[0][name]) for name in names if name not in differing]
    rows += [
        (str(number), name, origin[name])
        for number, origin in enumerate(origins, 1)
        for name in names
        if name in differing and name in origin
    ]
    frame = pd.DataFrame(rows, columns=["launch", "what", "value"], dtype=object)
    columns = {"launch": "launch", "what": "", "value": ""} if len(origins) > 1 else {"what": "", "value": ""}
    return Table("provenance", frame, columns, "The code, the packages, the machine and the command behind the rows.")


def _origin(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance in words; what is not known is left out."""
    packages = ", ".join(f"{name} {version}" for name, version in provenance.get("packages", {}).items())
    changed = ", with changes that were not committed" if provenance.get("dirty") else ""
    words = {**provenance, "commit": f"{provenance.get('commit') or 'unknown'}{changed}", "packages": packages}
    return {name: value for name, value in words.items() if name != "dirty" and value not in (None, "")}
