"""What the columns of somebody's table of runs mean: variables of laws, settings that keep runs apart, or not used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tinyscale.analysis.table_checks import doubts
from tinyscale.analysis.table_file import SCALES, numbers
from tinyscale.errors import FitError
from tinyscale.fitting.points import COLUMNS, column_of
from tinyscale.formatting import plural

# Headers that people use, the first found is taken; without case, spaces and punctuation. Those of the results lead.
VARIABLES = {
    "n": "nnonembedding n params nparams numparams parameters nparameters numparameters numberofparameters paramcount "
    "parametercount modelparams modelparameters nonembeddingparams nonembeddingparameters nonembparams "
    "paramsnonembedding nonembedding modelsize trainableparams trainableparameters activeparams totalparams "
    "totalparameters paramstotal ntotal size",
    "d": "tokens d ntokens numtokens numberoftokens tokencount trainingtokens traintokens tokenstrained trainedtokens "
    "tokensseen tokensprocessed totaltokens totaltrainingtokens datatokens datasetsize datasetsizetokens datasize data",
    "c": "flops c flop nflops flopsused trainingflops trainingflop trainflops totalflops totalflop flopsbudget "
    "flopbudget computebudget trainingcompute totalcompute traincompute computeflops computeflop compute isoflop "
    "isoflopbudget budget pfdays petaflopdays petaflopsdays",
    "t": "contextlength t context contextsize contextwindow ctx ctxlen ctxlength seqlen sequencelength maxseqlen nctx",
    "u": "uniquetokens u nuniquetokens",
    "width": "dmodel width hiddensize hiddendim nembd embeddim modeldim",
    "depth": "nlayers depth layers numlayers nlayer numhiddenlayers",
    "loss": "valloss loss validationloss evalloss testloss finalvalloss finalvalidationloss finalevalloss finalloss "
    "heldoutloss devloss lossval losseval losstest lossfinal crossentropy crossentropyloss celoss ce valce valnll nll "
    "smoothedloss trainloss trainingloss finaltrainloss losstrain",
}  # fmt: skip
PERPLEXITY = "perplexity ppl valppl valperplexity validationperplexity evalppl evalperplexity testppl testperplexity"
SETTINGS = {
    "run": "run runid runname",
    "seed": "seed randomseed rngseed initseed",
    "arm": "arm variant treatment",
    "lr": "lr learningrate peaklr peaklearningrate maxlr maxlearningrate lrpeak lrmax baselr",
    "batch_tokens": "batchtokens batch bs bsz batchsize globalbatchsize gbs batchsizetokens tokensperbatch "
    "trainbatchsize globalbatch",
    "weight_decay": "weightdecay wd",
    "optimizer": "optimizer optim opt",
    "schedule": "schedule lrschedule scheduler lrscheduler",
    "warmup_fraction": "warmupfraction warmup warmupratio warmupsteps",
    "precision": "precision dtype",
    "activation": "activation activationfunction",
}
# What is another question, and not another setting: losses on two of these do not compare.
TASKS = (
    "dataset datasetname data corpus corpusname task domain language lang benchmark evalset valset testset evaldata "
    "modality tokenizer family modelfamily architecture arch modeltype model"
)  # fmt: skip

NAMEABLE = (*COLUMNS, "weight", *SETTINGS)
COUNTS = ("n", "d", "c", "t", "u")


@dataclass(frozen=True)
class Reading:
    """A table of runs, understood.

    frame: its rows; settings and labels under the results' names, sizes and loss under their own; columns: variable of
    a law -> its column; tasks: columns whose values do not compare; unused: columns that nothing reads; notes: what was
    read as what, a sentence each.
    """

    frame: pd.DataFrame
    columns: Mapping[str, str]
    tasks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what is infinite then is refused as a size
def read_table(frame: pd.DataFrame, named: Mapping[str, str], known: Sequence[str] = ()) -> Reading:
    """The meaning of a table's columns. named: what the user says, variable or setting -> column; known: columns that
    are used under their own names.

    FitError for a name that nothing has, a column that is not there, and sizes that contradict each other.
    """
    refuse_misnamed(frame, named)
    original = list(map(str, frame.columns))
    frame, found, notes = _with_variables(frame.copy(), named)
    frame, renamed = _with_settings(frame, named, set(found.values()))
    found, derived = _third_size(frame, found)
    used = {*found.values(), *renamed.values()}
    tasks = tuple(name for name in _named_as(frame, TASKS, used) if _splits(frame, name, found))
    unused = tuple(name for name in original if name not in (*used, *renamed, *tasks, *known) and name in frame)
    shape = [f"{name} = {found[name]}" for name in ("width", "depth") if name in found and name not in named]
    pairs = [*found.items(), *((name, column) for column, name in renamed.items())]
    read = [f"{name} = {column}" for name, column in pairs if column not in derived]
    read = [each for each in read if each not in shape]
    line = "; ".join([
        f"read: {', '.join(read)}", *derived.values(),
        *([f"for the law width-depth only: {', '.join(shape)}"] if shape else []),
        *([f"kept apart: {', '.join(tasks)}"] if tasks else []),
        *([f"not used: {_listed(unused)}"] if unused else []),
    ])  # fmt: skip
    apart = (*renamed.values(), *tasks)
    blank = [f"{name} ({plural(int(frame[name].isna().sum()), 'row')})" for name in apart if frame[name].isna().any()]
    if blank:
        notes.append(f"blank cells, which count as a value of their own: {', '.join(blank)}")
    return Reading(frame, found, tasks, unused, (line, *notes, *doubts(frame, found)))


def refuse_misnamed(frame: pd.DataFrame, named: Mapping[str, str]) -> None:
    """FitError for a name that nothing reads, or a column that is not there: else another law would be fitted."""
    for name in named:
        if name not in NAMEABLE:
            raise FitError(f"--columns {name}=...: no law has {name!r}; legal: {', '.join(NAMEABLE)}")
        column_of(frame, name, named)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def given_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Those columns of a fit to a table that stand in the table, and were not derived from others."""
    return {
        name: column for name, column in columns.items() if name in COLUMNS and not re.search(r"^6 |^ln | / 6 ", column)
    }


def _key(header: str) -> str:
    return re.sub(r"[^a-z0-9]", "", header.lower())


def _read_header(header: str) -> tuple[str, str, float]:
    """Its key, the key of what follows the last dot or slash, and the scale that its unit says: `Params (M)` 1e6."""
    unit = " ".join(re.findall(r"[(\[{]([^)\]}]*)[)\]}]", header)).lower()
    bare = re.sub(r"[(\[{][^)\]}]*[)\]}]", " ", header)
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", bare).lower())
    if len(words) > 1 and words[-1] in SCALES and _is_count("".join(words[:-1]).removesuffix("in")):
        unit, words = f"{unit} {words[-1]}", [word for word in words[:-1] if word != "in"]
    last = _key(re.split(r"[./]", bare)[-1])
    return "".join(words), last, _scale_of(unit, "".join(words))


def _is_count(key: str) -> bool:
    return any(key in VARIABLES[name].split() for name in COUNTS)


def _scale_of(unit: str, key: str) -> float:
    """1e6 of `M`, `in millions`, `1e6`, `x 10^6`; 8.64e19 of PF-days; 1 of any other unit."""
    squeezed = re.sub(r"[\s×x*-]", "", unit)
    if "pfday" in squeezed + key or re.search(r"petaflops?(/s)?days?", squeezed + key):
        return 8.64e19
    if power := re.search(r"(?:10\^|10\*\*|1e\+?)(\d+)", re.sub(r"\s", "", unit)):
        return 10.0 ** int(power[1])
    if prefix := re.search(r"\b(giga|tera|peta|exa|zetta|g|t|p|e|z)flops?\b", unit):
        return {"g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}[prefix[1][0]]
    return next((SCALES[word] for word in re.findall(r"[a-z]+", unit) if word in SCALES), 1.0)


def _named_as(frame: pd.DataFrame, keys: str, taken: set[str]) -> list[str]:
    """Columns that are not taken and have one of these headers, the likeliest first."""
    wanted, found = keys.split(), []
    known = {key for each in (*VARIABLES.values(), *SETTINGS.values(), PERPLEXITY, TASKS) for key in each.split()}
    for place, name in enumerate(frame.columns):
        full, last, _ = _read_header(str(name))
        key = full if full in known else last
        if key in wanted and name not in taken:
            found.append((wanted.index(key), place, str(name)))
    return [name for _, _, name in sorted(found)]


def _with_variables(frame: pd.DataFrame, named: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """The frame with numbers for text in the columns of variables, which those are, and what was said of them."""
    found: dict[str, str] = {}
    notes: list[str] = []
    for name in (*VARIABLES, "weight"):
        taken = {*found.values(), *named.values()}
        if name in named:
            found[name] = named[name]
        elif name in VARIABLES and (likely := _numeric(frame, _named_as(frame, VARIABLES[name], taken))):
            found[name] = likely[0]
    if "loss" not in found and (likely := _numeric(frame, _named_as(frame, PERPLEXITY, set(found.values())))):
        found["loss"] = likely[0]
    for name, column in found.items():
        frame[column] = numbers(frame[column])
        _, _, scale = _read_header(column)
        if name in COUNTS and scale != 1 and frame[column].dtype.kind in "iuf":
            frame[column] = frame[column].to_numpy(float) * scale
            notes.append(f"{column}: its header says a unit, so its numbers are taken times {scale:g}")
    loss = found.get("loss")
    if loss and _named_as(frame[[loss]], PERPLEXITY, set()) and frame[loss].dtype.kind in "iuf":
        found["loss"] = f"ln {loss}"
        frame[found["loss"]] = np.log(frame[loss].where(frame[loss] > 0))
        notes.append(f"{loss} is a perplexity: the loss is taken as its logarithm")
    return frame, found, notes


def _numeric(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those whose cells are numbers for the most part: a column `data` may hold names."""
    kept = []
    for name in names:
        cells = numbers(frame[name].dropna())
        if sum(not isinstance(cell, str) for cell in cells) > len(cells) / 2:
            kept.append(name)
    return kept


def _with_settings(
    frame: pd.DataFrame, named: Mapping[str, str], taken: set[str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The frame with settings and labels under the results' own names, and header -> that name."""
    renamed: dict[str, str] = {}
    for name, keys in SETTINGS.items():
        likely = [named[name]] if name in named else _named_as(frame, keys, {*taken, *renamed, *named.values()})
        if not likely:
            continue
        header = likely[0]
        if header != name and name in frame:
            frame = frame.rename(columns={name: f"{name} (of the file)"})
        frame = frame.rename(columns={header: name})
        renamed[header] = name
        if name in ("lr", "batch_tokens", "weight_decay"):
            frame[name] = numbers(frame[name])
    return frame, renamed


def _third_size(frame: pd.DataFrame, found: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables with the one of N, D, C that was missing and follows from two, and column -> what is said of it."""
    have = [name for name in ("n", "d", "c") if name in found]
    if len(have) != 2 or any(frame[found[name]].dtype.kind not in "iuf" for name in have):
        return found, {}
    first, second = (frame[found[name]].to_numpy(float) for name in have)
    n, d = found.get("n"), found.get("d")
    missing = ({"n", "d", "c"} - set(have)).pop()
    formula, values = {
        "c": (f"6 {n} {d}", 6.0 * first * second),
        "d": (f"{found.get('c')} / 6 {n}", second / (6.0 * np.where(first > 0, first, np.nan))),
        "n": (f"{found.get('c')} / 6 {d}", second / (6.0 * np.where(first > 0, first, np.nan))),
    }[missing]
    said = {"c": "6 n d", "d": "c / 6 n", "n": "c / 6 d"}[missing]
    frame[formula] = values
    return {**found, missing: formula}, {formula: f"{missing} is not given: taken as {said}"}


def _splits(frame: pd.DataFrame, name: str, found: Mapping[str, str]) -> bool:
    """Whether a column tells texts or kinds of model apart: several values, that are not one for each size."""
    if frame[name].nunique(dropna=False) < 2:
        return False
    sizes = [found[each] for each in ("n",) if each in found and frame[found[each]].nunique() > 1]
    one_each = all((frame.groupby(name, dropna=False)[size].nunique() == 1).all() for size in sizes)
    return frame[name].nunique(dropna=False) <= len(frame) / 2 and not (sizes and one_each)
