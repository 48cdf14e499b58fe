"""`python -m tasks.models.footprint <<< '{"adapter": ...}'`: what an adapter costs, and what it says of other rows.

In a fresh process, as where it serves: nothing of the training is in its memory.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

SINGLE_TEXTS = 20
"""Asked one by one for the latency, after one that warms up."""


def main() -> None:
    import pandas as pd

    from tasks.base.device import peak_memory_mb
    from tasks.base.outcomes import Footprint
    from tasks.models import serving

    request = json.load(sys.stdin)
    adapter, rows = Path(request["adapter"]), pd.read_parquet(request["rows"])
    settings = serving.read_settings(adapter)
    model, tokenizer = serving.load_adapter(adapter, local_files_only=True)
    milliseconds = [
        answer_time(model, tokenizer, settings, rows.iloc[[place % len(rows)]]) for place in range(SINGLE_TEXTS + 1)
    ]
    footprint = Footprint(latency_ms=statistics.median(milliseconds[1:]), memory_mb=peak_memory_mb())
    if request.get("answers"):
        table = serving.ask(model, tokenizer, settings, rows)
        pd.DataFrame(table, columns=[str(place) for place in range(table.shape[1])]).to_parquet(request["answers"])
    footprint.write(Path(request["out"]))


def answer_time(model: Any, tokenizer: Any, settings: dict[str, Any], row: Any) -> float:
    """Milliseconds for one row."""
    from tasks.models import serving

    begun = time.perf_counter()
    serving.predict(model, tokenizer, settings, row)
    return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
