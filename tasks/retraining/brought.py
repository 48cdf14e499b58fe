"""What corrected labels brought a challenger: as much as is known, and no more."""

from typing import TYPE_CHECKING, Any

from tasks.base.outcomes import Gate
from tasks.base.records import PreparedData, RunResult
from tasks.base.trouble import first_line
from tasks.base.words import counted, listed, shown
from tasks.base.work import RunFolder
from tasks.data.corrections import CORRECTED, describe_corrections, ids_of, recorded_outcomes
from tasks.evaluation.champion import ChampionLeftOut, ask_about
from tasks.retraining.trials import learned_by, read_keys
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.sources.columns import array
from tasks.tracking.asking import run_facts
from tasks.tracking.versions import Champion

if TYPE_CHECKING:
    import numpy as np


def what_corrections_brought(
    config: RunConfig,
    data: PreparedData,
    trained: RunFolder,
    result: RunResult,
    champion: Champion | None,
    gate: Gate,
    here: RunFolder,
) -> str:
    """In sentences: how many there are, what both say of the corrected rows, and whether anything else differs."""
    assert data.corrections
    told = [describe_corrections(data.corrections)]
    if data.corrections.used:
        told.append(on_corrected_rows(config, data, trained, champion))
    if champion is None:
        told.append("There is no champion to compare with, so that what they brought is not known")
    else:
        told.append(beside_them(result, trained, champion, gate, here))
    return ". ".join(told) + "."


def on_corrected_rows(config: RunConfig, data: PreparedData, trained: RunFolder, champion: Champion | None) -> str:
    """How often champion and challenger give the corrected label. That is no test: the challenger has learned it."""
    from datasets import concatenate_datasets, load_from_disk

    splits, outcomes = load_from_disk(data.folder), recorded_outcomes(data)
    wanted = set(outcomes["id"][outcomes["outcome"] == CORRECTED])
    parts = [
        splits[role].select([place for place, one in enumerate(ids_of(splits[role], config.data)) if one in wanted])
        for role in ("train", "validation")
    ]
    rows = concatenate_datasets([part.select_columns([*data.text_columns, "labels"]) for part in parts])
    labels = array(rows, "labels")
    about = f"Of {counted(len(rows), 'corrected row')}, listed because a model disagreed with the label,"

    def right(table: "np.ndarray") -> int:
        return int((objective(data.task).decide(table) == labels).sum())

    ours = right(ask_challenger(config, data, trained, rows))
    if champion is None:
        return f"{about} the challenger, which has learned from them, has {ours:,} right"
    try:
        theirs = right(ask_about(config, data, champion, rows))
    except ChampionLeftOut as error:
        theirs_told = f"the champion could not be asked ({first_line(error)})"
    else:
        theirs_told = f"the champion has {theirs:,} right"
    return f"{about} {theirs_told}, and the challenger, which has learned from them, {ours:,}"


def ask_challenger(config: RunConfig, data: PreparedData, trained: RunFolder, rows: Any) -> "np.ndarray":
    """Answers for `rows`, (rows, columns)."""
    from tasks.models import serving

    model, tokenizer = serving.load_adapter(trained.adapter, local_files_only=config.offline)
    texts = rows.select_columns(list(data.text_columns)).to_pandas()
    return serving.ask(model, tokenizer, serving.read_settings(trained.adapter), texts)


def beside_them(result: RunResult, trained: RunFolder, champion: Champion, gate: Gate, here: RunFolder) -> str:
    """Whether the challenger differs from the champion in anything but the corrections."""
    gain = ""
    if gate.difference:
        gain = f" ({objective(gate.task).metrics[0].title} {shown(gate.difference.primary)})"
    if (others := differences(result, trained, champion, here)) is None:
        return f"How much of the difference{gain} is theirs is not known: the champion's run is gone"
    if not others:
        return (
            f"Nothing else that is recorded differs from the champion's run: the difference{gain} comes from them or "
            "from chance, for each was trained once"
        )
    return (
        f"The challenger also differs from the champion in {listed(others)}. No model was trained without the "
        f"corrections, so that how much of the difference{gain} is theirs is not known"
    )


NOT_TRAINED = ("data.test_revision", "data.corrections_revision", "data.max_test_rows", "evaluation.", "compute.")
"""Parameters that make no other adapter, or are the corrections themselves."""


def differences(result: RunResult, trained: RunFolder, champion: Champion, here: RunFolder) -> list[str] | None:
    """Parameters and texts in which the two trainings differ; None where the champion's run does not say."""
    facts, ours = (run_facts(run_id) if run_id else None for run_id in (champion.run_id, result.run_id))
    seen = learned_by(champion, here) if champion.run_id else None
    if facts is None or ours is None or seen is None:
        return None
    theirs = facts.parameters
    names = [name for name in {**theirs, **ours.parameters} if not name.startswith(NOT_TRAINED)]
    found = [name for name in sorted(names) if theirs.get(name) != ours.parameters.get(name)]
    if texts := seen.symmetric_difference(read_keys(trained.seen)):
        found.append(f"{counted(len(texts), 'text')} that only one of the two has learned from")
    if theirs.get("data.corrections_revision"):
        found.append("the corrections that the champion was trained with")
    return found
