"""Write docs/sweep-file.md and docs/results-schema.md from the code, and the numbers of results/README.md.

python docs/generate.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

import pandas as pd
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tinyscale.analysis.forecasts import Registration, forecasts_table, read_registrations
from tinyscale.analysis.records import read_records
from tinyscale.results.launches import FIELDS as LAUNCH_FIELDS
from tinyscale.results.schema import COLUMNS, MEASUREMENT_COLUMNS, SCHEMA_VERSION
from tinyscale.results.store import Results
from tinyscale.results.sweep_record import SweepRecord
from tinyscale.spec.config import TrialConfig
from tinyscale.spec.measurement import KINDS
from tinyscale.spec.search_space import SEARCHABLE, Search, Values
from tinyscale.spec.sweep import SweepFile
from tinyscale.storage import Folder

DOCS, ROOT = Path(__file__).parent, Path(__file__).parent.parent
README = ROOT / "results" / "README.md"
BEGIN, END = "<!-- exponents: made by docs/generate.py from results/ -->", "<!-- end of exponents -->"
FORECASTS_BEGIN = "<!-- forecasts: made by docs/generate.py from results/ -->"
FORECASTS_END = "<!-- end of forecasts -->"
MADE = "<!-- Made by docs/generate.py from the code: change it there. -->"

SWEEP_FILE = """\
# The sweep file

{made}

One YAML file is one sweep: what all trials share, what varies, and the seeds. It is read strictly: an unknown key, a
wrong type or an impossible value gives one error, before anything starts. The error names file, line, field, the given
value and the legal ones. Write numbers as `20`, `20.0` or `2e1`; counts also as `2M` or `1.5B` (powers of 1,000).
Name a field in full (`model.d_model`) or by its last part where that is unique (`d_model`).

## Keys of the file

| key | default | what it is |
|---|---|---|
{keys}

`axes` multiply: every combination is trained with every seed. Fields under `zip` vary together. Each arm under `arms`
repeats the whole grid with its overrides; a list in an arm is an axis of that arm alone. On the command line,
`--set FIELD=VALUE` overrides a field of `base`, `--select NAME=VALUE` takes a part of the grid.

## Teachers: `teachers`

Each teacher is one trial: `base` with its overrides, without the axes. A trial with its name as `train.teacher` is its
student, and learns from the teacher's predictions at each token, by (1 - lambda) CE + lambda tau^2 KL: lambda is
`teacher_weight`, tau `temperature`. A launch trains teachers first and keeps their weights. Validation loss is that of
the text for all. A teacher has the tokenizer of its students, and sees as many tokens at once.

```yaml
teachers: {{large: {{model.d_model: 96, train.tokens_budget: 4M}}}}
arms: {{alone: {{}}, taught: {{train.teacher: large}}}}
```

## Measurements: `measure`

Each key of `measure` is a kind of question that the launch puts to the weights of every finished trial, in a second
phase. A list is an axis of its kind. A measurement changes no trial: `measure` added to a file that was launched trains
nothing, and what is measured is not measured again. A failed one is made again by the next launch; `tinyscale plan`
shows what is missing. Values are in `results/measurements/`, see [results-schema.md](results-schema.md).

```yaml
measure:
  quantize: {{bits: [8, 6, 5, 4, 3], of: [all, blocks]}}
```
{kinds}
## Keys of `search`

| key | default | what it is |
|---|---|---|
{search}

Keys of each field under `fields`:

| key | default | what it is |
|---|---|---|
{values}

Each cell of arms and axes has its own study, in which the seeds follow each other round-robin. A sample is a normal
trial: the sampled values, in three digits, are among its axes. The next launch continues the search. Its studies are in
`results/optuna/<sweep>.log`; `optuna-dashboard` shows them. On the command line, `--set search.trials=8`.

{searchable}

## Fields of a trial

A field without a default is required, unless its description says how its value follows. The budgets exclude each
other, and so do `n_heads` and `head_dim`, `corpus` and `parts`: setting one removes the others that a lower layer set.
{parts}"""

SCHEMA_FILE = """\
# The columns of the results

{made}

Each file under `results/trials/` is one trial in Parquet; each row is one evaluation. The last row of a failed or
diverged trial has a reason and no loss. This is version {version} of the schema; columns are only ever added. Every
column may be null.

```python
import pandas as pd

frame = pd.read_parquet("results/trials")
```

| column | type | what it holds |
|---|---|---|
{columns}

The metadata of each file hold, as JSON, the full configuration (`tinyscale.config`), the facts of the text
(`tinyscale.facts`), what is known of a user's own code (`tinyscale.own`) and the provenance (`tinyscale.provenance`:
commit, packages, machine, command). Sweeps are in `results/sweeps/<name>.json`, fits in `results/fits/fits.json`,
registered forecasts in `results/forecasts/`; the last two are described in [fitting.md](fitting.md). The code itself is
in `results/code/<hash>/`, see [your-own.md](your-own.md).

## Measurements

Each file under `results/measurements/` holds what was measured of one trial: most often one row per measurement, for
some kinds several. The fields of a kind are columns, null in rows of other kinds. Read them with
`pd.read_parquet("results/measurements")`.

| column | type | what it holds |
|---|---|---|
{measurements}

## Launches

`results/launches/` has one small JSON file per launch that ended, stopped launches included. The file never changes.
Its name is the sweep, the time and a few random letters, so that simultaneous launches do not overwrite each other.

| key | what it holds |
|---|---|
{launches}"""


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "" if info.is_required() else "see below"
    if isinstance(info.default, BaseModel):
        return "see below"
    if isinstance(info.default, list | dict | tuple | str) and not info.default:
        return "none"
    if isinstance(info.default, tuple):
        return f"`[{', '.join(map(str, info.default))}]`"
    shown = str(info.default).lower().replace("|", "\\|")  # else the end of a cell
    return "none" if info.default is None else f"`{shown}`"


def _legal(info: FieldInfo) -> str:
    """The legal values: alternatives, bounds, or else the type."""
    for each in (info.annotation, *get_args(info.annotation)):
        if get_origin(each) is Literal:
            return ", ".join(f"`{value}`" for value in get_args(each))
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = {name: getattr(rule, name) for rule in info.metadata for name in signs if hasattr(rule, name)}
    words = [f"{signs[name]} {value:,}" for name, value in bounds.items()]
    return ", ".join(words) or _type(info.annotation)


def _type(annotation: Any) -> str:
    names = {str: "text", bool: "`true`, `false`", int: "a number", float: "a number"}
    return next((word for kind, word in names.items() if annotation is kind or kind in get_args(annotation)), "")


def _rows(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        if not _is_model(info):
            yield f"| `{name}` | {_default(info)} | {_legal(info)} | {info.description} |"


def _is_model(info: FieldInfo) -> bool:
    return isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)


def _parts(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A table of a model's own fields, then one for each model inside it."""
    rows = "\n".join(_rows(model))
    if rows:
        title = f"`{prefix}`" if prefix else "The trial itself"
        heads = "| field | default | legal | what it is |\n|---|---|---|---|"
        yield f"\n### {title}\n\n{model.__doc__}\n\n{heads}\n{rows}\n"
    for name, info in model.model_fields.items():
        if _is_model(info) and info.annotation is not None:
            yield from _parts(info.annotation, f"{prefix}.{name}" if prefix else name)


def _keys(model: type[BaseModel]) -> str:
    """The rows of a table of keys."""
    return "\n".join(f"| `{n}` | {_default(info)} | {info.description} |" for n, info in model.model_fields.items())


def _columns(columns: Sequence[tuple[str, Any, str]]) -> str:
    """The rows of a table of columns."""
    return "\n".join(f"| `{name}` | {kind} | {what} |" for name, kind, what in columns)


def exponents(results: Path) -> str:
    """The exponents of all committed fits under results/<study>/, with the commits that trained their runs."""
    rows = [
        row for folder in sorted(results.iterdir()) if (folder / "fits" / "fits.json").exists() for row in _of(folder)
    ]
    if not rows:
        return "No study is committed under `results/` yet; the quickstart's fit is above."
    heads = ("text", "sweep", "law", "exponents, with 95 % intervals", "held-out error", "commit")
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *rows])


def _of(folder: Path) -> Iterator[str]:
    """The rows of one study."""
    store = Results(str(folder))
    sweeps = {record.name: record for record in store.read_sweeps()}
    for record in read_records(str(folder))[1]:
        powers = {name: record.estimates[name] for name in record.form.exponents if name in record.estimates}
        shown = ", ".join(f"{name} {estimate}" for name, estimate in (powers | dict(record.derived)).items())
        held = f"{record.held_out.error_percent:+.2f} %" if record.held_out else "none"
        commits = _commits(store, sweeps[record.origin.sweep], record.origin.arm)
        yield f"| {folder.name} | {record.origin.title} | `{record.formula}` | {shown} | {held} | {commits} |"


def _commits(store: Results, record: SweepRecord, arm: str | None) -> str:
    """The commits that trained an arm of a sweep; without an arm, all of it."""
    trials = {entry.trial for entry in record.entries if arm in (None, entry.cell.arm)}
    found = {store.read_trial(trial)[1]["provenance"].get("commit") for trial in trials}
    return ", ".join(sorted(f"`{commit[:7]}`" if commit else "unknown" for commit in found))


def forecasts(results: Path) -> str:
    """All committed forecasts under results/<study>/ that were registered before their runs, and what came of them."""
    rows = [
        row
        for folder in sorted(results.iterdir())
        if folder.is_dir()
        for made in read_registrations(Folder.at(folder))
        for row in _scored(folder.name, made)
    ]
    if not rows:
        return "No forecast is registered under `results/` yet."
    heads = ("text", "run", "x compute", "forecast, with 95 % interval", "measured", "error", "inside", "registered")
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *rows])


def _scored(study: str, made: Registration) -> Iterator[str]:
    """The rows of one file of forecasts."""
    for row in forecasts_table([made]).to_dict("records"):
        came = ("not run yet", "", "")
        if row["runs"]:
            came = (f"{row['measured']:.4f}", f"{row['error_percent']:+.2f} %", f"{row['inside']} of {row['runs']}")
        times = "not known" if pd.isna(row["times_beyond"]) else f"{row['times_beyond']:.3g}"
        loss = "{forecast:.4f} ({low:.4f} to {high:.4f})".format(**row)
        cells = (study, f"{made.name}: {row['label']}", times, loss, *came)
        yield f"| {' | '.join(cells)} | {row['registered'][:10]}, `{row['commit'][:7]}` |"


def readme(results: Path = ROOT / "results") -> str:
    """The results' README with the current exponents, and the registered forecasts where it has a place for them."""
    text = _between(README.read_text(), BEGIN, END, exponents(results))
    return _between(text, FORECASTS_BEGIN, FORECASTS_END, forecasts(results))


def _between(text: str, begin: str, end: str, content: str) -> str:
    """The text with what is between two marks replaced."""
    return re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n\n{content}\n\n{end}", text, flags=re.S)


def pages() -> dict[Path, str]:
    """The text of each generated file."""
    launches = "\n".join(f"| `{name}` | {what} |" for name, what in LAUNCH_FIELDS.items())
    parts = "".join(_parts(TrialConfig, ""))
    return {
        README: readme(),
        DOCS / "sweep-file.md": SWEEP_FILE.format(
            made=MADE,
            keys=_keys(SweepFile),
            search=_keys(Search),
            values=_keys(Values),
            searchable=fill(f"Fields that may be searched: {', '.join(f'`{path}`' for path in SEARCHABLE)}.", 118),
            kinds="".join(each for kind, model in KINDS.items() for each in _parts(model, kind)),
            parts=parts,
        ),
        DOCS / "results-schema.md": SCHEMA_FILE.format(
            made=MADE,
            version=SCHEMA_VERSION,
            columns=_columns(COLUMNS),
            measurements=_columns(MEASUREMENT_COLUMNS),
            launches=launches,
        ),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
