"""What `tinyscale fit` does: read groups, fit the laws they support, write fits, tables and plots."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyscale.errors import FitError
from tinyscale.fitting.choose import fit, laws_for
from tinyscale.fitting.compare import Contrast, compare_arms
from tinyscale.fitting.efficiency import MATCH
from tinyscale.fitting.fit import Fit
from tinyscale.fitting.groups import READERS, Group, by_setting, read_groups, refuse_mixed
from tinyscale.fitting.honesty import CONVENTIONS, under_conventions
from tinyscale.fitting.isoflop import Optima
from tinyscale.fitting.tables import Found, label, slug, write_contrasts, write_fits
from tinyscale.fitting.tuning import SETTINGS, Tuning
from tinyscale.storage import Folder


@dataclass(frozen=True)
class Analysis:
    """fits: of every group that supports a law; contrasts: of arms; refused: a line for each group; written: paths."""

    fits: tuple[Found, ...]
    contrasts: tuple[Contrast, ...]
    refused: tuple[str, ...]
    written: tuple[str, ...]


def analyse(
    location: str,
    results: str,
    *,
    law: str | None = None,
    columns: Mapping[str, str] | None = None,
    convention: str | None = None,
    pool: bool = False,
    **options: Any,
) -> Analysis:
    """Fit every group at `location` (a results folder or a file of runs) and write into the folder `results`.

    convention: a name of CONVENTIONS to count N and FLOPs by, or `all` to add how the parameters move under each.
    options: of `fit_law`. FitError, with all reasons, when no group supports a law.
    """
    if convention and convention != "all":
        columns = {**CONVENTIONS[convention], **(columns or {})}
    fits: list[Found] = []
    refused: list[str] = []
    groups = read_groups(location, columns=columns, pool=pool)
    for whole in groups:
        parts = [whole] if law in SETTINGS else by_setting(whole)
        for group in parts:
            try:
                fits += fit_group(group, law, columns=columns, every_convention=convention == "all", **options)
            except FitError as error:
                refused.append(f"{group.title}: not fitted: {error}")
        if len(parts) > 1 and law is None:
            fits += tuned(whole, columns)
    contrasts = contrasts_of(groups, refused)
    if not fits and not contrasts:
        raise FitError("\n".join(refused))
    folder = Folder.at(results if location.endswith(tuple(READERS)) else location)
    written = (*write_fits(folder, fits), *write_contrasts(folder, contrasts), *write_plots(folder, fits))
    return Analysis(tuple(fits), tuple(contrasts), tuple(refused), written)


def contrasts_of(groups: list[Group], refused: list[str]) -> list[Contrast]:
    """The arms of each sweep against its base, where each arm is one group; what cannot be compared joins `refused`."""
    contrasts: list[Contrast] = []
    for sweep in dict.fromkeys(group.sweep for group in groups):
        arms = [group for group in groups if group.sweep == sweep and not group.frame.empty]
        comparable = all({*MATCH, "seed"} <= set(group.frame.columns) and len(by_setting(group)) == 1 for group in arms)
        if comparable and len(arms) > 1:
            try:
                contrasts += compare_arms(arms)
            except FitError as error:
                refused.append(str(error))
    return contrasts


def fit_group(
    group: Group, law: str | None, *, columns: Mapping[str, str] | None, every_convention: bool, **options: Any
) -> list[Found]:
    """The laws that a group supports, the main one first. FitError when the main one is refused."""
    refuse_mixed(group)
    main, *others = [law] if law else laws_for(group.frame, columns)
    fits = [fit(group.frame, main, columns=columns, **options)]
    for name in others:
        try:
            fits.append(fit(group.frame, name, columns=columns, **options))
        except FitError:
            continue  # a second law is a bonus
    return [label(found, group, **_conventions(group, found, every_convention)) for found in fits]


def tuned(group: Group, columns: Mapping[str, str] | None) -> list[Found]:
    """Laws of the best learning rate and batch, where the runs support them."""
    found: list[Found] = []
    for law in SETTINGS:
        try:
            found.append(label(fit(group.frame, law, columns=columns), group))
        except FitError:
            continue  # not what was swept
    return found


def _conventions(group: Group, found: Found, wanted: bool) -> dict[str, Any]:
    if not wanted or not isinstance(found, Fit):
        return {}
    return {"conventions": under_conventions(group.frame, found.law, found.delta)}


def write_plots(folder: Folder, fits: list[Found]) -> list[str]:
    """Draw each fit as PNG and SVG under plots/; the paths written."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tinyscale"  # the same fit gives the same file
    from matplotlib import pyplot as plt

    from tinyscale.plot import plot_budgets, plot_fit, plot_optima, plot_tuning

    written = []
    for found in fits:
        wide = 2 if isinstance(found, Optima) else 1
        figure, axes = plt.subplots(1, wide, figsize=(6.4 * wide, 4.4), layout="constrained", squeeze=False)
        if isinstance(found, Fit):
            plot_fit(found, ax=axes[0, 0])
        elif isinstance(found, Tuning):
            plot_tuning(found, ax=axes[0, 0])
        else:
            plot_budgets(found, ax=axes[0, 0])
            plot_optima(found, ax=axes[0, 1])
        for kind, about in (("png", None), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200, metadata=about)
            figure.set_layout_engine("none")  # what is laid out once need not be again
            (folder / "plots").write(f"{slug(found)}.{kind}", buffer.getvalue())
            written.append(f"{folder / 'plots'}/{slug(found)}.{kind}")
        plt.close(figure)
    return written
