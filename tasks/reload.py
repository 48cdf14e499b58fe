"""`python -m tasks.reload <<< '{"adapter": ..., "data": ...}'`: read an adapter in a fresh process and run it.

Nothing of the training process is here, so what is wrong on disk cannot hide behind what is right in memory.
"""

import gc
import json
import sys
from pathlib import Path


def main() -> None:
    gc.disable()  # looking for garbage, of which imports make none, takes a tenth of their time
    import peft  # noqa: F401
    from datasets import load_from_disk
    from safetensors.torch import save_file

    from tasks import serving
    from tasks.evaluation import PROBE_ROWS, model_rows

    if not (asked := sys.stdin.read()):  # who started this needs nothing, or is gone
        return
    request = json.loads(asked)
    model, tokenizer = serving.load_adapter(Path(request["adapter"]), local_files_only=True)
    splits = load_from_disk(request["data"])
    probe = splits["validation"].select(range(min(PROBE_ROWS, len(splits["validation"]))))
    rows = {"probe": model_rows(probe, tokenizer), "test": model_rows(splits["test"], tokenizer)}
    logits = {name: serving.classify(model, tokenizer, part, request["batch_size"]) for name, part in rows.items()}
    save_file(logits, request["out"])


if __name__ == "__main__":
    main()
