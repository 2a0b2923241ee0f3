"""Which measurements of a sweep's trials a launch has still to make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tinyscale.data.prompts import text_hash
from tinyscale.errors import ConfigError
from tinyscale.results.store import Results
from tinyscale.spec.measurement import Question, Score
from tinyscale.spec.state import State
from tinyscale.spec.trial import Trial


@dataclass(frozen=True)
class Measuring:
    """The measurements of a plan.

    questions: what is asked of each finished trial, with the hash of the text that it reads; missing: identity of a
    trial -> the questions to it that are not answered; done: how many are; failed: how many of the missing failed
    before; notes: which cannot be asked, and why.
    """

    questions: tuple[Question, ...] = ()
    missing: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many are missing."""
        return sum(map(len, self.missing.values()))

    def passes(self, trial: Trial) -> float:
        """Expected work for a trial, in passes over its validation text; its unchanged loss is one more."""
        questions = self.missing.get(trial.identity, ())
        return 1.0 + sum(question.fields.passes(trial) for question in questions) if questions else 0.0


def with_text_hash(question: Question) -> Question:
    """The question with the hash of the text that it reads. DataError where that cannot be read."""
    return replace(question, text_hash=text_hash(question.fields)) if isinstance(question.fields, Score) else question


def plan_measurements(questions: Sequence[Question], trials: Sequence[Trial], results: Results) -> Measuring:
    """What is missing of these questions to these trials. ConfigError for a question that fits none of them."""
    if not questions:
        return Measuring()
    questions = tuple(map(with_text_hash, questions))
    states, _ = results.measurement_states()  # what cannot be read is measured again
    missing: dict[str, tuple[Question, ...]] = {}
    counts: Counter[State | None] = Counter()
    refused: dict[Question, list[str]] = {}
    each = {trial.identity: trial for trial in trials}
    for identity, trial in each.items():
        asked = []
        for question in questions:
            if reason := question.refusal(trial):
                refused.setdefault(question, []).append(reason)
                continue
            state = states.get(question.identity_for(identity))
            counts[state] += 1
            if state != State.FINISHED:
                asked.append(question)
        if asked:
            missing[identity] = tuple(asked)
    for question, reasons in refused.items():
        if len(reasons) == len(each):
            raise ConfigError(f"{question.origin}: measure: no trial can be asked {question.label}: {reasons[0]}")
    notes = [
        f"not measured: {question.label} of {len(reasons)} trials: {reasons[0]}"
        for question, reasons in refused.items()
    ]
    return Measuring(questions, missing, counts[State.FINISHED], counts[State.FAILED], tuple(notes))
