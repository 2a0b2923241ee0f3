"""The serial form of a fit, which fits.json holds, and from which text, tables, figures and the page are made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from tinyscale.fitting.estimate import Estimate, estimates_json
from tinyscale.fitting.holdout import HeldOut
from tinyscale.fitting.laws import Law, OptimaLaw, find_form
from tinyscale.fitting.laws.optima import with_optimum
from tinyscale.fitting.solve import Certificate
from tinyscale.fitting.uncertainty import Noise

MOST_BYTES = 120  # of a title in a file's name; a file system takes 255 with all that is added
MEASURED = {"bits", "latents", "active", "total", "languages"}  # of measurements and parts: not of a trial's own loss
TRIALS = "trials"  # the source of fits to a results folder's own runs
# Keys of an entry of fits.json, in the order that they are written in.
KEYS = (
    "name", "derived", "sweep", "arm", "title", "question", "rows", "source", "where", "conventions", "law", "formula",
    "params", "method", "intervals", "objective", "certificate", "noise", "held_out", "forecast", "rivals", "influence",
    "slice", "warnings", "columns", "of", "points", "sizes", "range", "optima",
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Which runs a fit is of.

    title: sweep, arm and setting, and where; dropped: reason -> rows that were left out; source: TRIALS, or the file of
    the runs; where: the expression that chose the runs, empty of a fit to all of them; question: the sweep's own title.
    """

    sweep: str = ""
    arm: str = ""
    title: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    source: str = TRIALS
    where: str = ""
    question: str = ""


@dataclass(frozen=True)
class Record:
    """form: the law; estimates: of its parameters; derived: what follows from them; points: how many were fitted.

    method: of the intervals: profile, bootstrap, wild, t or jackknife; intervals: the same in words.
    Of a law of the loss: certificate, noise, alternatives (laws of the same variables by held-out error), influence
    (the parameters without each size), range (of each variable), sizes, and conventions (the parameters under each way
    of counting, where it was asked for), and forecast (the laws that forecast new runs: `law`, `weight`,
    `error` on inner windows and `params`).
    Of optima: their table, and what their runs had in common, `of`.
    """

    origin: Origin
    form: Law | OptimaLaw
    formula: str
    slice: str
    estimates: Mapping[str, Estimate]
    derived: Mapping[str, Estimate]
    method: str
    intervals: str
    objective: Mapping[str, Any]
    held_out: HeldOut | None
    warnings: tuple[str, ...]
    columns: Mapping[str, str]
    points: int
    certificate: Certificate | None = None
    noise: Noise | None = None
    alternatives: tuple[Mapping[str, Any], ...] = ()
    influence: tuple[Mapping[str, Any], ...] = ()
    range: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sizes: int | None = None
    conventions: tuple[Mapping[str, Any], ...] = ()
    forecast: tuple[Mapping[str, Any], ...] = ()
    of: Mapping[str, Any] = field(default_factory=dict)
    optima: pd.DataFrame | None = None

    @property
    def law(self) -> str:
        """The law's name."""
        return self.form.name

    @property
    def name(self) -> str:
        """<sweep>[-<arm>][-<setting>]-<law>: the fit's name, and the stem of its files.

        Of chosen runs, a hash of their expression stands before the law: no fit of all runs has that name.
        """
        if not (where := self.origin.where):
            return file_stem(self.origin.title, f"-{self.law}")
        digest = hashlib.sha256(where.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        return file_stem(self.origin.title.removesuffix(f" where {where}"), f"-where-{digest}-{self.law}")

    @property
    def kept(self) -> pd.DataFrame:
        """The rows of the table of optima that have one; empty of a law of the loss."""
        return pd.DataFrame() if self.optima is None else with_optimum(self.optima)

    @property
    def is_of_loss(self) -> bool:
        """Whether the law is of the loss of trials, not of what was measured of them."""
        return isinstance(self.form, Law) and self.form.predicts == "loss" and not MEASURED & set(self.form.variables)

    @property
    def headline(self) -> str:
        """The parameter to quote where there is room for one."""
        return self.form.headline if self.form.headline in self.estimates else next(iter(self.estimates))

    @property
    def theory(self) -> Mapping[str, float]:
        """Parameter -> the value that is derived for it, where there is one."""
        return self.form.theory if isinstance(self.form, Law) else {}

    @property
    def all_estimates(self) -> dict[str, Estimate]:
        """Of the parameters, and of what follows from them."""
        return {**self.estimates, **self.derived}

    def as_json(self) -> dict[str, Any]:
        """Plain values, as an entry of fits.json, and the hash of all of them.

        An end of an interval that the data do not set is null.
        """
        origin = self.origin
        values = {
            "name": self.name,
            "derived": estimates_json(self.derived),
            "sweep": origin.sweep,
            "arm": origin.arm,
            "title": origin.title,
            **({"question": origin.question} if origin.question else {}),
            "rows": {"kept": self.points, "dropped": dict(origin.dropped)},
            "source": origin.source,
            **({"where": origin.where} if origin.where else {}),
            **({"conventions": [dict(row) for row in self.conventions]} if self.conventions else {}),
            "law": self.law,
            "formula": self.formula,
            "params": estimates_json(self.estimates),
            "method": self.method,
            "intervals": self.intervals,
            "objective": dict(self.objective),
            "held_out": self.held_out.as_json() if self.held_out else None,
            "slice": self.slice,
            "warnings": list(self.warnings),
            "columns": dict(self.columns),
            "points": self.points,
            **(self._of_loss() if self.optima is None else self._of_optima(self.optima)),
        }
        ordered = {key: values[key] for key in KEYS if key in values}
        return {**ordered, "sha256": json_hash(ordered)}

    def _of_loss(self) -> dict[str, Any]:
        assert self.certificate is not None and self.noise is not None
        return {
            "certificate": {**asdict(self.certificate), "at_bound": list(self.certificate.at_bound)},
            "noise": asdict(self.noise),
            **({"forecast": [dict(row) for row in self.forecast]} if self.forecast else {}),
            "rivals": [dict(row) for row in self.alternatives],
            "influence": [dict(row) for row in self.influence],
            "sizes": self.sizes,
            "range": {name: list(ends) for name, ends in self.range.items()},
        }

    def _of_optima(self, table: pd.DataFrame) -> dict[str, Any]:
        kept = len(self.kept)
        return {
            "certificate": {"converged": True, self.form.kind: kept, "refused": len(table) - kept},
            "of": dict(self.of),
            "optima": _rows(to_files(self.form, table)),
        }

    @classmethod
    def of_json(cls, entry: Mapping[str, Any]) -> Record:
        """What `as_json` wrote, also before it wrote the method. FitError for a law that there is none of here."""
        form = find_form(entry["law"])
        rest: dict[str, Any] = {}
        if isinstance(form, OptimaLaw):
            table = pd.DataFrame(entry["optima"]).rename(columns={file: name for name, file in form.names.items()})
            numbers = {name: float for name in ("best", "best_d", "log_sd", "loss") if name in table}
            rest = {"optima": table.astype(numbers), "of": entry.get("of", {})}
        else:
            certificate = {**entry["certificate"], "at_bound": tuple(entry["certificate"]["at_bound"])}
            rest = {
                "certificate": Certificate(**certificate),
                "noise": Noise(**entry["noise"]),
                "forecast": tuple(entry.get("forecast", ())),
                "alternatives": tuple(entry["rivals"]),
                "influence": tuple(entry["influence"]),
                "range": {name: (low, high) for name, (low, high) in entry["range"].items()},
                "sizes": entry["sizes"],
                "conventions": tuple(entry.get("conventions", ())),
            }
        return cls(
            origin=Origin(
                sweep=entry["sweep"],
                arm=entry["arm"],
                title=entry["title"],
                dropped=entry["rows"]["dropped"],
                source=entry.get("source", TRIALS),
                where=entry.get("where", ""),
                question=entry.get("question", ""),
            ),
            form=form,
            formula=entry["formula"],
            slice=entry["slice"],
            estimates={name: Estimate.of_json(each) for name, each in entry["params"].items()},
            derived={name: Estimate.of_json(each) for name, each in entry["derived"].items()},
            method=entry.get("method", entry["intervals"].split()[0]),
            intervals=entry["intervals"],
            objective=entry["objective"],
            held_out=HeldOut.of_json(entry["held_out"]) if entry["held_out"] else None,
            warnings=tuple(entry["warnings"]),
            columns=entry["columns"],
            points=entry["points"],
            **rest,
        )


def json_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content as JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_stem(title: str, ending: str = "") -> str:
    """A title as the stem of a file's name; a long one is cut, and a hash stands for what is left out."""
    safe = re.sub(r"[^\w.=-]+", "_", title)
    if len(safe.encode()) > MOST_BYTES:
        digest = hashlib.sha256(title.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        safe = f"{safe.encode()[:MOST_BYTES].decode(errors='ignore')}-{digest}"
    return f"{safe}{ending}"


def to_files(form: Law | OptimaLaw, table: pd.DataFrame) -> pd.DataFrame:
    """A table of optima with its columns as files name them."""
    return table.rename(columns=dict(form.names)) if isinstance(form, OptimaLaw) else table


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values, NaN as None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(k): v for k, v in row.items()} for row in plain.to_dict("records")]
