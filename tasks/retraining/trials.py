"""Champion and challenger on the same rows, none of which either has learned from."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.records import PreparedData
from tasks.base.work import RunFolder
from tasks.data.frozen import in_our_columns
from tasks.data.targets import reader
from tasks.evaluation.error_analysis import read_test_rows, slice_masks
from tasks.evaluation.predictions import paired_predictions, read_predictions
from tasks.evaluation.wording import slice_title
from tasks.retraining.gate import NewClasses, Trial
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.tracking.asking import SEEN, TEST_ROWS, download, run_facts
from tasks.tracking.versions import Champion

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def new_classes(
    known: Sequence[str], data: PreparedData, frozen: "pd.DataFrame | None", forward: str
) -> NewClasses | None:
    """What the champion, which knows the classes `known`, and the challenger cannot be compared on; None for nothing.

    `frozen` are the champion's test rows, where the challenger's are those of its classes.
    """
    came, went = (
        tuple(name for name in names if name not in others)
        for names, others in ((data.label_names, known), (known, data.label_names))
    )
    if not data.class_counts["test"] or not (came or went):  # a number has no classes
        return None
    rows = sum(data.class_counts["test"][data.label_names.index(name)] for name in came)
    if frozen is not None:
        rows += int((~reader(data.task).encoded(frozen[LABEL].tolist(), data.label_names)[1]).sum())
        forward = f"--refresh_test draws test rows of all present classes; {forward}"
    return NewClasses(came, went, tuple(name for name in data.label_names if name in known), rows, forward)


def is_measured_on(champion: Champion, data: PreparedData) -> bool:
    """Whether these test rows are the champion's own."""
    facts = run_facts(champion.run_id) if champion.run_id else None
    return facts is not None and facts.tags.get("test_fingerprint") == data.test_fingerprint


def learned_by(champion: Champion, here: RunFolder) -> set[int] | None:
    """Keys of the texts that the champion has learned from; None where its run does not say."""
    assert champion.run_id
    file = download(champion.run_id, SEEN, here.own)
    return read_keys(file) if file else None


def read_keys(file: Path) -> set[int]:
    import pandas as pd

    return set(pd.read_parquet(file)["text"].tolist())


def trial_of(
    data: PreparedData,
    trained: RunFolder,
    known: Collection[str],
    seen: Sequence[tuple[Sequence[str], set[int]]] = (),
) -> Trial:
    """Champion and challenger on the challenger's test rows of classes that are `known` to the champion too.

    Less those that one has learned from: whose text, of these columns, is among these keys.
    """
    import numpy as np

    files = {"champion": trained.staged / "champion.parquet", "tuned": trained.predictions}
    predictions = paired_predictions({name: str(file) for name, file in files.items()})
    test = read_test_rows(data, predictions)
    slices = [(slice_title(kind, name), inside) for kind, name, inside in slice_masks(data, test)]
    new = [i for i, name in enumerate(data.label_names) if name not in known]
    has = objective(data.task).indicator(predictions.labels, len(data.label_names))
    shared = ~has[:, new].any(1) if has.size else np.ones(len(test), bool)
    fresh = np.ones(len(test), dtype=bool)
    for columns, keys in seen:
        fresh &= unseen(test, columns, keys)
    inside = fresh & shared
    return Trial(
        labels=predictions.labels[inside],
        champion=predictions.tables["champion"][inside],
        challenger=predictions.tables["tuned"][inside],
        slices=[(title, part[inside]) for title, part in slices if part[inside].any()],
        left_out=int((~fresh).sum()),
        task=data.task,
    )


def unseen(rows: "pd.DataFrame", text_columns: Sequence[str], seen: set[int]) -> "np.ndarray":
    """Mask, (rows,), of those whose text is not in `seen`."""
    import numpy as np

    from tasks.data.duplicates import stable_keys

    return np.asarray([key not in seen for key in stable_keys([rows[name] for name in text_columns])])


def own_test(run_id: str, settings: dict[str, Any], config: RunConfig, here: RunFolder) -> "pd.DataFrame | None":
    """The test rows of a run, with the text columns of `config` and the class in LABEL."""
    import pandas as pd

    file = download(run_id, TEST_ROWS, here.own)
    if file is None or len(settings["text_columns"]) != len(config.data.text_columns):
        return None
    data = config.data.model_copy(update={"label_column": LABEL})
    rows = in_our_columns(pd.read_parquet(file), settings["text_columns"], data)
    if columns := list(config.data.label_columns):
        ones = rows[columns].to_numpy() > 0
        rows[LABEL] = [[name for name, yes in zip(columns, row, strict=True) if yes] for row in ones]
    return rows


LABEL = "label"
"""Column of a champion's test rows, whatever it was called when they were logged; no text column can have the name."""


def own_trial(
    champion: Champion,
    known: Sequence[str],
    data: PreparedData,
    own_rows: "pd.DataFrame",
    ours: set[int],
    here: RunFolder,
) -> Trial:
    """Both on the champion's own test rows, less those that the challenger has learned from or has no class for."""
    import pandas as pd

    assert champion.run_id
    predictions = download(champion.run_id, "comparison/tuned.parquet", here.own)
    assert predictions
    answers, names = pd.read_parquet(here.answers), list(data.label_names)
    _, _, table = read_predictions(str(predictions))
    fresh = unseen(own_rows, data.text_columns, ours)
    labels, among_ours = reader(data.task).encoded(own_rows[LABEL].tolist(), names)
    inside = fresh & among_ours
    return Trial(
        labels=labels[inside],
        champion=objective(data.task).among(table, known, names)[inside],
        challenger=answers.to_numpy()[inside],
        left_out=int((~fresh).sum()),
        task=data.task,
    )


def settings_of(run_id: str, folder: Path) -> dict[str, Any] | None:
    """Of a run's adapter; None where the run does not have them."""
    from tasks.models import serving

    file = download(run_id, f"adapter/{serving.SETTINGS}", folder)
    return serving.read_settings(file.parent) if file else None
