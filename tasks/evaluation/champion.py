"""The registered champion as a reference on the test rows."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.progress import warn
from tasks.base.records import PreparedData
from tasks.base.trouble import first_line, is_network_trouble
from tasks.data.frozen import paired_columns
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.tracking.adapters import download_adapter
from tasks.tracking.versions import Champion

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


class ChampionLeftOut(ValueError):
    """The champion cannot be measured on these rows; the message says why."""


def ask_champion(config: RunConfig, data: PreparedData, champion: Champion | None) -> "np.ndarray":
    """Answers of the registered adapter for the test rows; ChampionLeftOut as `ask_about`."""
    from datasets import load_from_disk

    assert champion
    return ask_about(config, data, champion, load_from_disk(data.folder)["test"])


def ask_about(config: RunConfig, data: PreparedData, champion: Champion, rows: "Dataset") -> "np.ndarray":
    """The registered adapter, as it is served, about any rows; ChampionLeftOut where it answers another question or
    cannot be read."""
    import pandas as pd

    from tasks.models import serving

    with tempfile.TemporaryDirectory() as folder:
        try:
            adapter = download_adapter(champion.uri, Path(folder))
            settings = serving.read_settings(adapter)
            check_champion(config, data, champion.uri, settings)
            model, tokenizer = serving.load_adapter(adapter, local_files_only=config.offline)
        except (serving.OtherWeights, serving.NeedsPackage) as error:
            raise ChampionLeftOut(f"{champion.uri}: {error}") from error
        except OSError as error:
            if is_network_trouble(error) and not config.offline:
                raise
            raise ChampionLeftOut(f"{champion.uri} cannot be read: {first_line(error)}") from error
    columns = paired_columns(settings["text_columns"], data.text_columns)
    texts = pd.DataFrame({theirs: rows[ours][:] for theirs, ours in columns.items()})
    classes = settings["label_names"]
    if new := [name for name in data.label_names if name not in classes]:
        warn("The champion does not know the class %s, and has every row of it wrong", ", ".join(new))
    table = serving.ask(model, tokenizer, settings, texts)
    return objective(data.task).among(table, classes, data.label_names)


def check_champion(config: RunConfig, data: PreparedData, uri: str, settings: dict[str, Any]) -> None:
    """Raises ChampionLeftOut unless it can be asked about these texts, and answers with labels of theirs."""
    classes, columns = settings["label_names"], settings["text_columns"]
    if (theirs := settings.get("task", "single_label")) != data.task:
        raise ChampionLeftOut(f"{uri} was trained for {theirs}, not {data.task}")
    if len(set(classes).intersection(data.label_names)) < min(2, len(data.label_names)):
        raise ChampionLeftOut(f"{uri} knows {', '.join(classes)}, not {', '.join(data.label_names)}")
    if len(columns) != len(data.text_columns):
        raise ChampionLeftOut(f"{uri} reads the columns {', '.join(columns)}, not {', '.join(data.text_columns)}")
    if settings["base_model"]["trust_remote_code"] and not config.model.trust_remote_code:
        raise ChampionLeftOut(f"{uri} brings its own Python code and model.trust_remote_code is not set")
