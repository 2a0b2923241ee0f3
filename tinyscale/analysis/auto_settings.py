"""Values of settings that a trial leaves open (`train.lr: auto`): by the law of the best ones, else by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinyscale.analysis.records import FITS, read_records
from tinyscale.errors import FitError
from tinyscale.fitting.laws.optima import SETTINGS, TUNING
from tinyscale.fitting.record import Record
from tinyscale.fitting.tuning import HOLDS_FOR, best_setting, setting_beside
from tinyscale.results.schema import trial_columns
from tinyscale.results.store import Results
from tinyscale.spec.trial import Trial

LARGEST = 10.0  # rate that a configuration takes
FAR = 2.0  # times beyond the sizes that a law was fitted to, from where on it is said


def _batch_rule(d: float) -> float:
    return float(min(0.58 * d**0.571, d / 2000))


def _rate_rule(n: float, batch: float) -> float:
    return float(0.07 * (batch / n) ** 0.5)


def _decay_rule(n: float, d: float, batch: float, lr: float) -> float:
    return float(min(1.0, batch / (lr * d * 1.084 * (d / n) ** -0.527)))


# Where the rules come from; all are for adamw under the standard parametrization. Of the published ones: Li et al. 2025
# (2503.04715), B* = 0.58 D^0.571 (95 % of their bootstraps of the exponent: 0.534 to 0.606, by their table of fits);
# Bergsma et al. 2025 (2505.13738) say that the best timescale is a power of D / N, and the two numbers of it are quoted
# from memory. Both are from models of 60M parameters and more, far beyond those that the rest was measured on.
SOURCES = {
    "batch_tokens": "0.58 D^0.571 (Li et al. 2025) or D / 2000, whichever is less: 2,000 steps of 256 tokens had less "
    "loss than fewer of more (results/sotu, lr)",
    "lr": "0.07 (B / N)^0.5, measured at N = 6K to 99K, B = 256 to 4,096 (results/sotu and results/tinystories, lr)",
    "weight_decay": "AdamW's timescale B / (lr w D) is 1.084 (D / N)^-0.527 (Bergsma et al. 2025, N from 111M on), "
    "w at most 1",
}


def tuning_laws(results: Results) -> list[Record]:
    """The records of the laws of the best settings that `fit` left in a results folder; none before it ran."""
    if not (results.folder / "fits").exists(FITS):
        return []
    return [record for record in read_records(results.location)[1] if record.law in TUNING and not record.origin.where]


def best_settings(trial: Trial, open_: Sequence[str], laws: Sequence[Record]) -> dict[str, tuple[float, str]]:
    """For each open setting its value, in three digits or whole contexts, and what says so.

    The batch comes first, then the rate at that batch, then the weight decay at both. Of laws for the trial's text,
    tokenizer, optimizer and parametrization those at its batch count before others, and of these the one of most runs;
    where there is no law, a rule. FitError where there is no rule either.
    """
    columns, others = trial_columns(trial), _settings_of(trial)
    task = {name: columns[name] for name in HOLDS_FOR}
    chosen: dict[str, tuple[float, str]] = {}
    for setting in sorted(open_, key=("batch_tokens", "lr", "weight_decay").index):
        about = [law for law in laws if setting in _tuned(law)]
        differ = {law.name: [name for name in task if law.of.get(name) != task[name]] for law in about}
        agree = [law for law in about if not differ[law.name]]
        if agree:
            value, why = _by_law(trial, setting, agree, others)
        else:
            value, why = _by_rule(trial, setting, others, differ)
        others[setting] = _rounded(trial, setting, value)
        chosen[setting] = others[setting], why
    return chosen


def _settings_of(trial: Trial) -> dict[str, float]:
    return {name: float(getattr(trial.config.train, name)) for name in SETTINGS}


def _tuned(law: Record) -> Sequence[str]:
    """The settings that a law gives; what an older version wrote does not name them."""
    tuned: Sequence[str] = law.objective.get("tuned") or TUNING[law.law].tunes
    return tuned


def _rounded(trial: Trial, setting: str, value: float) -> float:
    """The nearest value that a configuration takes."""
    if setting != "batch_tokens":
        return min(LARGEST, float(f"{value:.3g}"))
    whole = trial.config.model.context_length * trial.config.resources.workers
    return whole * max(1, round(min(value, trial.tokens) / whole))


def _by_law(trial: Trial, setting: str, laws: Sequence[Record], others: Mapping[str, float]) -> tuple[float, str]:
    law = min(laws, key=lambda each: (_other_batch(each, setting, others) is not None, -each.points))
    n, d = float(getattr(trial.parameters, law.columns["n"])), float(trial.tokens)
    if setting == _tuned(law)[0]:
        value = best_setting(law.estimates, n, d, others["batch_tokens"])
    else:
        value = setting_beside(law.estimates, setting, n, d)
    doubts = [_beyond(law, n, d), _other_batch(law, setting, others)]
    return value, ", ".join([f"by the law {law.name}", *filter(None, doubts)])


def _beyond(law: Record, n: float, d: float) -> str | None:
    """A word on sizes that are far from those that a law was fitted to."""
    kept = law.kept
    beyond = {name: max(v / kept[name].max(), kept[name].min() / v) for name, v in (("n", n), ("d", d))}
    far = [f"{name.upper()} {times:.2g} times beyond what it was fitted to" for name, times in beyond.items()
           if times > FAR]  # fmt: skip
    return " and ".join(far) or None


def _other_batch(law: Record, setting: str, others: Mapping[str, float]) -> str | None:
    """A word on a law whose runs all had another batch than the trial has."""
    held, batch = law.of.get("batch_tokens", others["batch_tokens"]), others["batch_tokens"]
    if setting == "batch_tokens" or held == batch:
        return None
    return f"which is of batch_tokens {held}, not {batch:.0f}"


def _by_rule(
    trial: Trial, setting: str, others: Mapping[str, float], differ: Mapping[str, Sequence[str]]
) -> tuple[float, str]:
    of_others = "; ".join(f"{name} is of another {', '.join(what)}" for name, what in differ.items())
    config = trial.config
    if config.train.optimizer != "adamw" or config.model.parametrization != "standard":
        raise FitError(
            f"the results hold no law of the best {setting} for this corpus, tokenizer, optimizer and parametrization "
            f"({of_others or 'none at all'}), and the rule is for adamw under the standard one; launch sweeps/lr.yaml "
            "with these into the same results and run tinyscale fit, or write a value"
        )
    n, d, batch = float(trial.parameters.n_non_embedding), float(trial.tokens), others["batch_tokens"]
    value = {
        "batch_tokens": _batch_rule(d),
        "lr": _rate_rule(n, batch),
        "weight_decay": _decay_rule(n, d, batch, others["lr"]),
    }[setting]
    why = f"prior rule, not tuned on your text: {SOURCES[setting]}" + (f" ({of_others})" if of_others else "")
    return value, why
