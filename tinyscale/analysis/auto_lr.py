"""The learning rate for a trial that leaves it to a law of the best one: `train.lr: auto`."""

from __future__ import annotations

from collections.abc import Sequence

from tinyscale.analysis.records import read_records
from tinyscale.errors import FitError, ResultsError
from tinyscale.fitting.record import Record
from tinyscale.fitting.tuning import HOLDS_FOR, best_setting
from tinyscale.formatting import compact
from tinyscale.results.schema import trial_columns
from tinyscale.results.store import Results
from tinyscale.spec.trial import Trial

LARGEST = 10.0  # that a configuration takes
FAR = 4.0  # times beyond the sizes that a law was fitted to, from where on it is said


def rate_laws(results: Results) -> list[Record]:
    """The records of the laws of the best learning rate that `fit` left in a results folder."""
    try:
        _, records = read_records(results.location)
    except ResultsError:
        return []
    return [record for record in records if record.law == "lr"]


def best_rate(trial: Trial, laws: Sequence[Record]) -> tuple[float, str]:
    """The rate for a trial's N and D, in three digits, and which law says so.

    Of laws for its text, tokenizer, optimizer and parametrization the one of most runs. FitError when there is none.
    """
    train = trial.config.train
    columns = trial_columns(trial)
    task = {name: columns[name] for name in HOLDS_FOR}
    differ = {law.name: [name for name in task if law.of.get(name) != task[name]] for law in laws}
    agree = [law for law in laws if not differ[law.name]]
    if not agree:
        others = "; ".join(f"{name} is of another {', '.join(what)}" for name, what in differ.items())
        raise FitError(
            f"the results hold no law of the best rate for this corpus, tokenizer, optimizer and parametrization "
            f"({others or 'none at all'}); launch sweeps/lr.yaml with these into the same results and run tinyscale "
            "fit, or write a rate"
        )
    law = max(agree, key=lambda law: law.points)
    n = float(getattr(trial.parameters, law.columns["n"]))
    rate = min(LARGEST, float(f"{best_setting(law.estimates, n, trial.tokens, train.batch_tokens):.3g}"))
    return rate, ", ".join([f"N = {compact(n)}, by the law {law.name}", *_doubts(law, n, train.batch_tokens)])


def _doubts(law: Record, n: float, batch_tokens: int) -> list[str]:
    """What a reader should know of a law that is used where it was not fitted."""
    sizes = law.kept["n"]
    beyond, batch = max(n / sizes.max(), sizes.min() / n), law.of.get("batch_tokens", batch_tokens)
    return [
        *([f"{beyond:.2g} times beyond the sizes it was fitted to"] if beyond > FAR else []),
        *([f"which is of batch_tokens {batch}, not {batch_tokens}"] if batch != batch_tokens else []),
    ]
