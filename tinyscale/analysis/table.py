"""What the columns of somebody's table of runs mean: variables of laws, settings that keep runs apart, or not used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from tinyscale.analysis.table_checks import doubts
from tinyscale.analysis.table_file import SCALES, has_unit, numbers, powers_raised
from tinyscale.errors import FitError
from tinyscale.fitting.mixture import LOSS, SHARE
from tinyscale.fitting.points import COLUMNS, column_of
from tinyscale.formatting import plural

# Headers that people use, the first found is taken; without case, spaces and punctuation. Those of the results lead.
VARIABLES = {
    "n": "nnonembedding n params nparams numparams parameters parameter nparameters numparameters numberofparameters "
    "paramcount parametercount modelparams modelparameters nonembeddingparams nonembeddingparameters nonembparams "
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
    "latents": "latents nlatents numlatents dictsize dictionarysize",
    "active": "active nactive activelatents topk",
    "bits": "bits nbits weightbits numbits bitwidth bitsperweight wbits",
    "total": "total alltokens tokensallparts tokensofallparts",
    "languages": "languages nlanguages numlanguages numberoflanguages",
    "teacher": "teacherloss",
    "loss": "valloss loss validationloss evalloss testloss finalvalloss finalvalidationloss finalevalloss finalloss "
    "heldoutloss devloss lossval losseval losstest lossfinal crossentropy crossentropyloss celoss ce valce valnll nll "
    "smoothedloss smoothloss trainloss trainingloss finaltrainloss losstrain fvu",
}  # fmt: skip
MEAN_LOSS = f"mean of {LOSS}NAME"  # the column that is made of them where a table has no other loss
OF_ONE_LAW = {
    "width": "width-depth", "depth": "width-depth",
    "total": "transfer", "languages": "languages", "teacher": "distilled",
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

_FLOPS = re.compile(r"(giga|tera|peta|exa|zetta|[gtpez])flops?")
_UNIT_WORD = re.compile(r"(?:10\s*(?:\^|\*\*)|\b1?e)\s*([+-]?\d+)|\d[\d.]*|[^\W\d_]+|%")

NAMEABLE = (*COLUMNS, "weight", *SETTINGS)
COUNTS = ("n", "d", "c", "t", "u")
MEASURED = ("lr", "batch_tokens", "weight_decay")  # settings that are numbers
UNITS = {**SCALES, "hundred": 1e2, "hundreds": 1e2}
PREFIXES = {"giga": 1e9, "tera": 1e12, "peta": 1e15, "exa": 1e18, "zetta": 1e21}  # of flops, or their first letter
# What a unit may say that moves no number.
NO_UNIT = (
    "count counts number token tokens param params parameter parameters non embedding nonembedding total train "
    "training val validation test final nat nats loss flop flops per in of x s e"
)  # fmt: skip


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
    of_mixtures = of_parts(frame)
    frame, found, mean = _with_mean_loss(frame, found)
    frame, renamed = _with_settings(frame, named, set(found.values()), notes)
    if "loss" not in found and len(frame):
        column_of(frame, "loss", named)  # while the frame has its own columns only
    found, derived = _third_size(frame, found)
    derived |= mean
    used = {*found.values(), *renamed.values(), *of_mixtures}
    tasks = tuple(name for name in _named_as(frame, TASKS, used) if _splits(frame, name, found))
    unused = tuple(name for name in original if name not in (*used, *renamed, *tasks, *known) and name in frame)
    special = {name: f"{name} = {found[name]}" for name in OF_ONE_LAW if name in found and name not in named}
    pairs = [*found.items(), *((name, column) for column, name in renamed.items())]
    read = [f"{name} = {column}" for name, column in pairs if column not in derived]
    read = [each for each in read if each not in special.values()]
    by_law = {law: [said for name, said in special.items() if OF_ONE_LAW[name] == law] for law in OF_ONE_LAW.values()}
    line = "; ".join([
        *([f"read: {', '.join(read)}"] if read else []), *derived.values(),
        *(f"for the law {law} only: {', '.join(said)}" for law, said in by_law.items() if said),
        *([f"for the laws mixture, transfer and languages only: {_listed(of_mixtures)}"] if of_mixtures else []),
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


def of_parts(frame: pd.DataFrame) -> list[str]:
    """The columns share_of_NAME and loss_of_NAME, of the parts of mixtures; none where there are not both."""
    found = {kind: [str(name) for name in frame if str(name).startswith(kind)] for kind in (SHARE, LOSS)}
    return [*found[SHARE], *found[LOSS]] if all(found.values()) else []


def _with_mean_loss(
    frame: pd.DataFrame, found: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """The frame with the shares and losses of parts as numbers and, where it has no other loss, the mean of these; the
    variables; and column -> what is said of it. FitError on what is no number, and on shares that are none.
    """
    names = of_parts(frame)
    if not names:
        return frame, dict(found), {}
    frame = frame.assign(**{name: numbers(frame[name]) for name in names})
    for name in names:
        if frame[name].dtype.kind not in "iuf":
            first = next(cell for cell in frame[name].dropna() if isinstance(cell, str))
            raise FitError(f"column {name}: {first!r} is no number; mend it, or leave it blank")
    shares = frame[[name for name in names if name.startswith(SHARE)]].fillna(0.0)
    wrong = (shares < 0).any(axis=1) | ~(shares.sum(axis=1) > 0)
    if wrong.any():
        raise FitError(
            f"{frame.index.name or 'row'} {frame.index[wrong][0]}: the columns {SHARE}NAME must be zero or above, and "
            "one above zero; mend that row or remove it"
        )
    if "loss" in found:
        return frame, dict(found), {}
    losses = frame[[name for name in names if name.startswith(LOSS)]]
    said = {MEAN_LOSS: f"loss is not given: taken as the mean of the {LOSS}NAME that a run has"}
    return frame.assign(**{MEAN_LOSS: losses.mean(axis=1)}), {**found, "loss": MEAN_LOSS}, said


def given_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Those columns of a fit to a table that stand in the table, and were not derived from others."""
    return {
        name: column
        for name, column in columns.items()
        if name in COLUMNS and not re.search(r"^6 |^ln | / 6 |^mean of ", column)
    }


def _key(header: str) -> str:
    return re.sub(r"[^a-z0-9]", "", header.lower())


def _read_header(header: str) -> tuple[str, str, str]:
    """Its key, the key of what follows the last dot or slash, and its unit: `m` of `Params (M)` and of `n_params_m`."""
    unit = " ".join(re.findall(r"[(\[{]([^)\]}]*)[)\]}]", header)).lower()
    bare = re.sub(r"[(\[{][^)\]}]*[)\]}]", " ", header)
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", bare).lower())
    for place, rest in ((-1, words[:-1]), (0, words[1:])):
        if rest and words[place] in SCALES and _is_count("".join(rest).removesuffix("in")):
            unit, words = f"{unit} {words[place]}", [word for word in rest if word != "in"]
            break
    unit = " ".join([unit, *filter(_FLOPS.fullmatch, words)])
    return "".join(words), _key(re.split(r"[./]", bare)[-1]), powers_raised(unit).strip()


def _is_count(key: str) -> bool:
    return any(key in VARIABLES[name].split() for name in COUNTS)


def _scale_of(unit: str, key: str) -> tuple[float, str]:
    """What 1 stands for, and the words of the unit that say nothing of it or are not known.

    1e6 of `M`, `in millions`, `1e6`, `x 10^6`; 1e9 of `thousand million`; 1e8 of `hundreds of millions`; 8.64e19 of
    PF-days.
    """
    squeezed = re.sub(r"[\s×x*-]", "", unit) + key
    if "pfday" in squeezed or re.search(r"petaflops?(/s)?days?", squeezed):
        return 8.64e19, ""
    scale, unknown = 1.0, []
    for found in _UNIT_WORD.finditer(re.sub(r"(?<=\d),(?=\d{3})", "", unit)):
        word, power = found[0], found[1]
        flops = _FLOPS.fullmatch(word)
        if power or re.fullmatch("10*", word):
            scale *= 10.0 ** int(power) if power else float(word)
        elif flops:
            scale *= next(value for name, value in PREFIXES.items() if name.startswith(flops[1]))
        elif word in UNITS:
            scale *= UNITS[word]
        elif word not in NO_UNIT.split():
            unknown.append(word)
    return scale, " ".join(unknown)


def _named_as(frame: pd.DataFrame, keys: str, taken: set[str]) -> list[str]:
    """Columns that are not taken and have one of these headers, the likeliest first."""
    wanted, found = keys.split(), []
    known = {key for each in (*VARIABLES.values(), *SETTINGS.values(), PERPLEXITY, TASKS) for key in each.split()}
    for place, name in enumerate(frame.columns):
        if str(name).startswith((SHARE, LOSS)):
            continue
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
    notes += _not_numbers(frame, found)
    if "loss" not in found and (likely := _numeric(frame, _named_as(frame, PERPLEXITY, set(found.values())))):
        found["loss"] = likely[0]
    for name, column in found.items():
        frame[column] = _in_units(frame[column], name, column, notes)
    loss = found.get("loss")
    if loss and _named_as(frame[[loss]], PERPLEXITY, set()) and frame[loss].dtype.kind in "iuf":
        found["loss"] = f"ln {loss}"
        frame[found["loss"]] = np.log(frame[loss].where(frame[loss] > 0))
        notes.append(f"{loss} is a perplexity: the loss is taken as its logarithm")
    return frame, found, notes


def _not_numbers(frame: pd.DataFrame, found: Mapping[str, str]) -> list[str]:
    """Of each size that was not found: which column has its header, but no numbers."""
    notes = []
    for name in ("n", "d", "c"):
        for column in _named_as(frame, VARIABLES[name], set(found.values())) if name not in found else ():
            if _key(column) not in TASKS.split() and len(cells := frame[column].dropna()):
                notes.append(f"{column}: not read as {name}, its cells are no numbers, the first is {cells.iloc[0]!r}")
    return notes


def _in_units(cells: pd.Series[Any], name: str, header: str, notes: list[str]) -> pd.Series[Any]:
    """The numbers of a variable or setting, times what its header's unit stands for; `notes` receives what was done."""
    key, _, unit = _read_header(header)
    scale, unknown = _scale_of(unit, key)
    if name in (*COUNTS, *MEASURED):
        own = any(isinstance(cell, str) and has_unit(cell) for cell in cells)
        if scale != 1:
            notes.append(
                f"{header}: its header says a unit, so its numbers are taken times {scale:g}"
                + (", but for those with a unit of their own" if own else "")
            )
    else:
        scale, unknown = 1.0, "" if scale == 1 and not unknown else unit
        if name == "loss" and re.search(r"\b(bits?|log2)\b", unit) and not re.search("byte|char|word", unit):
            scale, unknown = float(np.log(2)), ""
            notes.append(f"{header}: in bits, so its numbers are taken times ln 2, as nats")
    if unknown:
        notes.append(f"{header}: what {unknown!r} means in its header is not known; its numbers are taken as they are")
    return numbers(cells, scale)


def _numeric(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those whose cells are numbers for the most part: a column `data` may hold names."""
    kept = []
    for name in names:
        cells = numbers(frame[name].dropna())
        if sum(not isinstance(cell, str) for cell in cells) > len(cells) / 2:
            kept.append(name)
    return kept


def _with_settings(
    frame: pd.DataFrame, named: Mapping[str, str], taken: set[str], notes: list[str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The frame with settings and labels under the results' own names, and header -> that name; notes: added to."""
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
        if name in MEASURED:
            frame[name] = _in_units(frame[name], name, header, notes)
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
