"""`python -m tasks.models.reload <<< '{"adapter": ..., "data": ...}'`: read an adapter in a fresh process and run it.

Nothing of the training process is here, so what is wrong on disk cannot hide behind what is right in memory.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tasks.base.environment import without_collection


def prepare() -> None:
    """Import what takes seconds, before there is a request."""
    with without_collection():
        import datasets  # noqa: F401
        import pandas  # noqa: F401
        import peft  # noqa: F401
        import safetensors.torch  # noqa: F401
        import transformers  # noqa: F401

        from tasks.models import serving  # noqa: F401


def main(request: dict[str, Any]) -> None:
    from datasets import load_from_disk
    from safetensors.torch import save_file

    from tasks.models import serving

    model, tokenizer = serving.load_adapter(Path(request["adapter"]), local_files_only=True)
    splits = load_from_disk(request["data"])
    probe = splits["validation"].select(range(min(request["probe_rows"], len(splits["validation"]))))
    rows = {"probe": serving.model_rows(probe, tokenizer), "test": serving.model_rows(splits["test"], tokenizer)}
    logits = {name: serving.classify(model, tokenizer, part, request["batch_size"]) for name, part in rows.items()}
    save_file(logits, request["out"])


if __name__ == "__main__":
    prepare()
    if asked := sys.stdin.read():  # else who started this needs nothing, or is gone
        main(json.loads(asked))
