"""Sweeps over mixtures: the groups of rows of one part, whose laws `tinyscale fit` makes.

A law is of the loss of one part, in that part's own tokens: the mean over the parts, val_loss, is of another text in
each mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from tinyscale.analysis.runs import Group, by_setting
from tinyscale.analysis.table import MEAN_LOSS, of_parts
from tinyscale.errors import FitError
from tinyscale.fitting.laws.optima import MIXTURE
from tinyscale.fitting.mixture import LOSS, SHARE
from tinyscale.fitting.points import varying

COLUMNS = {"d": "part_tokens"}  # variables of the laws that are other columns here than in a trial's rows
SCORES = {"loss": "val_loss", "loss_se": "val_loss_se"}  # what a part's scores are called here
OF_MIXTURE = ["by_part", "shares", "unique_tokens"]  # columns that say what all parts are: no settings of one part
FEWEST_LANGUAGES = 3  # numbers of parts that a law of them needs
OF_OTHERS = {"transfer": ("tau",), "languages": ("phi", "psi")}  # law -> what it says of the other parts
MORE_STEPS = (
    "on as many of its own tokens a mixture took more optimizer steps than the part alone, and what these are worth is "
    "in {exponents} too; make train.batch_tokens proportional to the sum of the shares, with that of the part at 1"
)


def with_parts(group: Group, law: str | None = None) -> list[Group]:
    """The group; or, where its runs are on several mixtures, a group for each part that all runs read.

    A part with three numbers of parts beside it, all of the same share, has the law `languages`. Else it has the law
    `transfer`, for each set of other parts: of the runs with these and of those on the part alone. Asked for, the law
    `mixture` is of all runs together.
    """
    if "by_part" not in group.frame or not varying(group.frame, ["shares"]):
        return [group]
    if law == MIXTURE.name:
        return [replace(group, frame=mixture_rows(group.frame), law=law)]
    read = [{part["part"] for part in parts} for parts in group.frame["by_part"]]
    targets = sorted(set.intersection(*read))
    return [each for part in targets for each in _of_part(group, part)] or [group]


def parts_of_table(group: Group, law: str | None) -> list[Group]:
    """The group of a table; or, for a law of mixtures, those of `with_parts`, of its share_of_NAME and loss_of_NAME.

    They are made where such a law is asked for, or no law and the table has no other loss. FitError where the runs have
    no such law.
    """
    names = of_parts(group.frame)
    own_loss = group.columns.get("loss") != MEAN_LOSS
    wanted = law in (MIXTURE.name, *OF_OTHERS) or (law is None and not own_loss)
    if not wanted or not varying(group.frame, [name for name in names if name.startswith(SHARE)]):
        return [group]
    if law == MIXTURE.name:
        return [replace(group, law=law, unread=None)]
    tokens = group.columns.get("d")
    if tokens is None or "n" not in group.columns:
        raise FitError(
            f"the losses of parts on several mixtures have laws of the parameters and the tokens, and the table has no "
            f"{'n' if tokens else 'd'}: name its column with --columns, or ask for --law {MIXTURE.name}"
        )
    columns = {"n": group.columns["n"], "d": COLUMNS["d"], "total": tokens, "loss": SCORES["loss"]}
    by_part = pd.Series(_by_part(group.frame, names, tokens), group.frame.index)
    frame = group.frame.drop(columns=names).assign(by_part=by_part)
    frame["shares"] = by_part.map(lambda parts: ", ".join(f"{each['part']} {each['share']}" for each in parts))
    found = with_parts(replace(group, frame=frame, columns=columns, unread=None), law)
    if found[0].law is None:
        raise FitError(f"no part is read by all runs, so none has a law of its own: ask for --law {MIXTURE.name}")
    if law not in (None, *(each.law for each in found)):
        raise FitError(f"these runs on mixtures have the law {found[0].law}, and {law} is of others: see fitting.md")
    return found


def _by_part(frame: pd.DataFrame, names: Sequence[str], tokens: str) -> list[list[dict[str, Any]]]:
    """Of each row the parts that it reads and that are scored, as a trial's rows hold them."""
    parts = [name.removeprefix(SHARE) for name in names if name.startswith(SHARE)]
    shares = frame[[SHARE + name for name in parts]].fillna(0.0).to_numpy(float)
    shares = shares / shares.sum(axis=1, keepdims=True)
    losses = frame.reindex(columns=[LOSS + name for name in parts]).to_numpy(float)
    return [
        [
            {"part": name, "share": share, "tokens": share * whole, "loss": loss}
            for name, share, loss in zip(parts, *each, strict=True)
            if share
        ]
        for *each, whole in zip(shares, losses, frame[tokens], strict=True)
    ]


def mixture_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs with the share and the loss of each part as columns `share_of_de`, `loss_of_de`, ..."""
    each = [
        {f"{what}{part['part']}": part[name] for part in parts for what, name in ((SHARE, "share"), (LOSS, "loss"))}
        for parts in frame["by_part"]
    ]
    kept = frame.drop(columns=[name for name in (*OF_MIXTURE, "val_tokens") if name in frame])
    return pd.concat([kept, pd.DataFrame(each, index=frame.index)], axis=1)


def part_rows(frame: pd.DataFrame, part: str) -> pd.DataFrame:
    """The rows of runs that read a part, with its scores in place of the trial's.

    part_tokens: its training tokens, part_batch: those of a step; languages: parts that are read; others: those beside
    it, alike: whether all have the same share.
    """
    rows: list[dict[str, Any]] = []
    batches = frame["batch_tokens"] if "batch_tokens" in frame else [0] * len(frame)  # of a table that names none
    for index, parts, whole in zip(frame.index, frame["by_part"], batches, strict=True):
        own = next((each for each in parts if each["part"] == part), None)
        if own is not None:
            scores = {SCORES.get(name, name): own[name] for name in own if name not in ("tokens", "share")}
            others = "+".join(each["part"] for each in parts if each is not own)
            alike = max(each["share"] for each in parts) < 1.01 * min(each["share"] for each in parts)
            batch = round(own["share"] * whole)
            facts = {"part_tokens": own["tokens"], "part_batch": batch, "languages": len(parts)}
            rows.append({"row": index, **scores, **facts, "others": others, "alike": alike})
    of_part = pd.DataFrame(rows).set_index("row")
    kept = frame.loc[of_part.index].drop(columns=[*OF_MIXTURE, "tokens_budget"], errors="ignore")
    return kept.assign(**{str(name): of_part[name] for name in of_part})


def _of_part(group: Group, part: str) -> Iterator[Group]:
    frame = part_rows(group.frame, part)
    columns = {**COLUMNS, **group.columns}
    if frame["languages"].nunique() >= FEWEST_LANGUAGES and frame["alike"].all():
        yield from _of_law(group, f"{group.title}-{part}", frame, "languages", columns)
        return
    alone = frame["others"] == ""
    for others, rows in frame[~alone].groupby("others", sort=False):
        both = pd.concat([frame[alone], rows])
        yield from _of_law(group, f"{group.title}-{part}-from-{others}", both, "transfer", columns)


def _of_law(group: Group, title: str, rows: pd.DataFrame, law: str, columns: Mapping[str, str]) -> Iterator[Group]:
    """The group, split by settings: those of runs of one size on as many tokens of all parts."""
    sizes = {name: column for name, column in columns.items() if name != "d"}
    sizes |= {"d": columns["total"]} if "total" in columns else {}
    same_steps = not varying(rows, ["part_batch"])  # then the batch follows from the shares
    own = rows.drop(
        columns=["others", "alike", "part_batch", *(["batch_tokens"] if same_steps and "batch_tokens" in rows else [])]
    )
    warnings = () if same_steps else (MORE_STEPS.format(exponents=" and ".join(OF_OTHERS[law])),)
    whole = replace(group, title=title, frame=own.reset_index(drop=True), columns=sizes)
    for each in by_setting(whole, "chinchilla"):
        yield replace(each, columns=columns, law=law, warnings=warnings)
