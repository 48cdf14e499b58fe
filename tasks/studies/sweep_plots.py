"""Pictures of a sweep: Optuna's own, made readable."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.drawing import STYLE, WIDTH, log_scale, short
from tasks.base.sweeps import SweepResult
from tasks.studies.shootout import metric_of
from tasks.studies.values import short_field, value_words

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LEAST_TRIALS = 10
"""Finished ones, before it is said which field matters: of fewer, chance alone decides."""

MOST_SLICES, MOST_CHOICES = 4, 12
"""What fits beside each other, and along an axis."""


def draw_sweep(folder: Path, study: "optuna.Study", result: SweepResult) -> list[Path]:
    """History, importances, slices and contour as PNG files; those that would say nothing are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    metric = metric_of(result)
    title = metric.title + metric.direction
    with optuna_style():
        shown = readable(study)
        fields = by_importance(shown)
        drawn = [
            ("history", history(shown, title)),
            ("importances", importances(shown, fields)),
            ("slices", slices(shown, fields, title)),
            ("contour", contour(shown, fields, title)),
        ]
        return [saved(figure, folder / f"{name}.png") for name, figure in drawn if figure]


@contextmanager
def optuna_style() -> Iterator[None]:
    """Within, Optuna may draw through pyplot, which nobody else here uses; nothing of it stays open."""
    import matplotlib
    import matplotlib.pyplot as plt
    import optuna

    backend, level, before = (
        matplotlib.get_backend(auto_select=False),
        optuna.logging.get_verbosity(),
        plt.get_fignums(),
    )
    try:
        with (
            matplotlib.rc_context(STYLE | {"figure.figsize": (WIDTH, 4.6), "figure.constrained_layout.use": True}),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            plt.switch_backend("agg")
            yield
    finally:
        for number in set(plt.get_fignums()).difference(before):
            plt.close(number)
        optuna.logging.set_verbosity(level)
        if backend:
            plt.switch_backend(backend)


def readable(study: "optuna.Study") -> "optuna.Study":
    """A copy in memory with fields and choices as people call them; with all trials, so that numbers stay."""
    import optuna
    from optuna.trial import TrialState

    copy = optuna.create_study(direction=study.direction)
    for trial in study.get_trials(deepcopy=False):
        whole = trial.state == TrialState.COMPLETE
        told: dict[str, Any] = {}
        kinds: dict[str, optuna.distributions.BaseDistribution] = {}
        for name, kind in trial.distributions.items():
            told[short_field(name)], kinds[short_field(name)] = trial.params[name], kind
            if isinstance(kind, optuna.distributions.CategoricalDistribution):
                words = choice_words(kind.choices)
                kinds[short_field(name)] = optuna.distributions.CategoricalDistribution(list(words.values()))
                told[short_field(name)] = words[shown_as(trial.params[name])]
        state = TrialState.COMPLETE if whole else TrialState.FAIL
        copy.add_trial(
            optuna.create_trial(state=state, value=trial.value if whole else None, params=told, distributions=kinds)
        )
    return copy


def shown_as(choice: Any) -> str:
    return json.dumps(choice)


def choice_words(choices: Sequence[Any]) -> dict[str, Any]:
    """What each choice is called on an axis: numbers as they are, so that they stand in order."""
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
        return {shown_as(choice): choice for choice in choices}
    words = [choice_word(choice) for choice in choices]
    if len(set(words)) < len(words):
        words = [shown_as(choice) for choice in choices]
    return {shown_as(choice): word for choice, word in zip(choices, words, strict=True)}


def choice_word(choice: Any) -> str:
    """tasks/settings/space.py has written lists and mappings as JSON."""
    if isinstance(choice, str) and choice[:1] in ("[", "{"):
        with suppress(ValueError):
            choice = json.loads(choice)
    return short(value_words(choice))


def finished(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def by_importance(study: "optuna.Study") -> dict[str, float]:
    """Fields of which finished trials have several values; where it can be told, how much each matters, most first."""
    import optuna

    trials = finished(study)
    tried = [{name: trial.params[name] for name in trial.params} for trial in trials]
    names = dict.fromkeys(name for params in tried for name in params)
    varied = [name for name in names if len({params[name] for params in tried if name in params}) > 1]
    if len(trials) < LEAST_TRIALS or len({trial.value for trial in trials}) == 1:
        return dict.fromkeys(varied, 0.0)
    found = optuna.importance.get_param_importances(study, params=varied) if varied else {}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def history(study: "optuna.Study", title: str) -> "Figure | None":
    from optuna.visualization.matplotlib import plot_optimization_history

    if len(finished(study)) < 2:
        return None
    axis = plot_optimization_history(study, target_name=title)
    axis.set_xlabel("trial")
    whole_numbers(axis.xaxis)
    handles, _ = axis.get_legend_handles_labels()
    figure = tidy(axis, "Each trial that came to its end, and the best so far", 4.6)
    figure.legend(handles, ["trial", "best so far"][: len(handles)], loc="outside lower center", ncols=2)
    return figure


def importances(study: "optuna.Study", fields: dict[str, float]) -> "Figure | None":
    from optuna.visualization.matplotlib import plot_param_importances

    if len(fields) < 2 or not any(fields.values()):
        return None
    axis = plot_param_importances(study, params=list(fields))
    axis.set_xlabel("share of what the fields together change, as Optuna estimates it")
    axis.set_ylabel("")
    for text in axis.texts:
        text.set_text(f" {text.get_text()}")
    return tidy(axis, "Which fields matter", 1.8 + 0.4 * len(fields))


def slices(study: "optuna.Study", fields: dict[str, float], title: str) -> "Figure | None":
    from optuna.visualization.matplotlib import plot_slice

    chosen = sorted(list(fields)[:MOST_SLICES])  # in the order that Optuna has
    if not chosen:
        return None
    drawn: Any = plot_slice(study, params=chosen, target_name=title)
    axes: list[Any] = list(drawn) if len(chosen) > 1 else [drawn]
    trials = finished(study)
    for axis, field in zip(axes, chosen, strict=True):
        readable_ticks(axis, {trial.params[field] for trial in trials if field in trial.params})
        for points in axis.collections:  # Optuna gives each panel colours of its own, and the bar beside them the last
            points.set_clim(trials[0].number, trials[-1].number)
    widths = [max(1.0, len(axis.get_xticks()) / MOST_CHOICES) if named(axis) else 1.0 for axis in axes]
    axes[0].get_gridspec().set_width_ratios(widths)
    axes[0].figure.axes[-1].set_ylabel("trial (darker: later)")
    whole_numbers(axes[0].figure.axes[-1].yaxis)
    which = "those that matter most" if any(fields.values()) else f"the first {len(chosen)} of {len(fields)}"
    heading = "Each trial, field by field" + (f": {which}" if len(fields) > len(chosen) else "")
    return tidy(axes[0], heading, 4.8, max(WIDTH, 1.5 + 2.5 * sum(widths)))


def named(axis: "Axes") -> bool:
    """Whether names stand along the axis, not numbers."""
    import matplotlib.category

    return isinstance(axis.xaxis.get_converter(), matplotlib.category.StrCategoryConverter)


def readable_ticks(axis: "Axes", values: set[Any]) -> None:
    """Choices stand upright where they would run into each other, and without the quotes that Optuna gives them."""
    whole = all(isinstance(value, int) for value in values)
    if named(axis):
        places = axis.get_xticks()
        names = [name.strip("'\"") for name in axis.xaxis.get_major_formatter().format_ticks(list(places))]
        axis.set_xticks(places, names, rotation=90 if sum(map(len, names)) > 16 else 0)
        axis.set_xlim(-0.5, len(names) - 0.5)
    elif axis.get_xscale() == "log":
        low, high = axis.get_xlim()
        log_scale(axis, "x", high / low, whole)
        axis.set_xlim(low, high)
        axis.tick_params(axis="x", labelrotation=0 if whole else 45)
    elif whole:
        whole_numbers(axis.xaxis)


def whole_numbers(side: "Axis") -> None:
    from matplotlib.ticker import MaxNLocator

    side.set_major_locator(MaxNLocator(integer=True))


def contour(study: "optuna.Study", fields: dict[str, float], title: str) -> "Figure | None":
    from optuna.visualization.matplotlib import plot_contour

    if not any(fields.values()):
        return None
    trials = finished(study)
    for pair in combinations(fields, 2):
        both = [tuple(trial.params[name] for name in pair) for trial in trials if set(pair) <= set(trial.params)]
        seen = [set(values) for values in zip(*both, strict=True)]
        # trials that lack one of the two have their scores in no part of the picture
        if len(set(both)) >= 5 and all(len(values) > 1 for values in seen) and all(map(fits_axis, seen)):
            axis: Any = plot_contour(study, params=list(pair), target_name=title)
            for side in ("x", "y"):
                if getattr(axis, f"get_{side}scale")() == "log":
                    low, high = getattr(axis, f"get_{side}lim")()
                    log_scale(axis, side, high / low)
            return tidy(axis, "Two fields together; between trials (dots) interpolated, darker is better", 5.2)
    return None


def fits_axis(values: set[Any]) -> bool:
    return len(values) <= MOST_CHOICES or all(isinstance(value, int | float) for value in values)


def tidy(axis: Any, title: str, height: float, width: float = WIDTH) -> "Figure":
    """In the looks of our other pictures, which Optuna has changed while it drew."""
    figure: Figure = axis.figure
    for one in figure.axes:
        one.set_title("")
        one.set_title("", loc="left")
        one.set_facecolor("white")
        one.tick_params(colors="black")
        if legend := one.get_legend():
            legend.remove()
        for side in ("left", "bottom"):
            one.spines[side].set(visible=True, color="black")
        one.grid(True, color="#b0b0b0", alpha=0.3, linewidth=0.8)
        for label in (one.xaxis.label, one.yaxis.label):
            label.set(fontsize=12, color="black")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    return figure


def saved(figure: "Figure", file: Path) -> Path:
    figure.savefig(file, metadata={"Software": None})
    return file
