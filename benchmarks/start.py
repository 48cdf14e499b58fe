"""From a command to the prompt: the demo for the second time, and `predict` of 60 rows, beside an older version.

    .venv/bin/python -m benchmarks.start [--against ac77f57] [--rounds 5]

Each version has a folder of its own, in which the demo has been run once, and is used with the packages of today. The
sides take turns. Processor seconds are those of the command and of all processes that it has started and waited for;
the seconds outside of the run are what the clock says beyond its own `seconds.total`: start, imports, the Prefect
server, the end. The result goes to benchmarks/results.json and docs/benchmarks.md, as that of benchmarks/speed.py.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.page import start_table
from benchmarks.speed import ROOT, Ended, check_out, keep, to_its_end
from tasks.sources.demo import demo_model

ROWS = 60


class Side(NamedTuple):
    """A version of the program in a folder of its own."""

    code: Path
    folder: Path

    def run(self, *command: str) -> Ended:
        settings = {"PYTHONPATH": str(self.code), "PREFECT_HOME": str(self.folder / "prefect")}
        return to_its_end([sys.executable, "-m", "flows.cli", *command], self.folder, settings)

    def measure(self, turn: int) -> dict[str, float]:
        """The demo; then the adapter that it has trained labels rows that it has not seen."""
        demo = self.run("finetune", "--json")
        result: dict[str, Any] = json.loads(demo.said.splitlines()[-1])
        rows = self.folder / f"{turn}.jsonl"
        rows.write_text("".join(json.dumps({"text": f"a film of {n} minutes, {turn}"}) + "\n" for n in range(ROWS)))
        labelled = self.run("predict", result["adapter_path"], str(rows), str(rows.with_suffix(".csv")))
        return {
            "demo, second time: s": demo.seconds,
            "demo: processor s": demo.processor_seconds,
            "demo: s outside of the run": demo.seconds - result["seconds"]["total"],
            f"predict {ROWS} rows: s": labelled.seconds,
            "predict: processor s": labelled.processor_seconds,
        }


def measured(sides: dict[str, Side], rounds: int) -> list[dict[str, Any]]:
    found = []
    for side in sides.values():
        side.run("finetune")
    for turn in range(rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            found.append({"name": name, "round": turn, "found": sides[name].measure(turn)})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", default="ac77f57")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    demo_model()
    with tempfile.TemporaryDirectory() as place:
        codes = {options.against: check_out(options.against, Path(place) / "code"), "now": ROOT}
        sides = {name: Side(code, Path(place) / name) for name, code in codes.items()}
        for side in sides.values():
            side.folder.mkdir()
        found = measured(sides, options.rounds)
    keep("start", found)
    print(start_table({"measured": found}))


if __name__ == "__main__":
    main()
