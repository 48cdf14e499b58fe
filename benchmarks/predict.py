"""Whether predict keeps its promises on long inputs: memory that does not grow, and the same bytes after kills.

    .venv/bin/python benchmarks/predict.py [--rows 1000000] [--kills 3]

A tiny random model labels made-up reviews, a tenth of the rows and all of them; then all of them again, where the
process is killed with -9 on the way. Peak memory is that of the command's process.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

own = dict(os.environ)
from tasks.base.device import mib  # noqa: E402
from tests.conftest import NEGATIVE, POSITIVE, bare_data, write_model  # noqa: E402

os.environ.clear()  # of the tests' settings: what is measured has all threads, and the caches that it is given
os.environ.update(own)


def make_adapter(folder: Path) -> Path:
    from tasks.models import adapter as adapters
    from tasks.models import foundation as models
    from tasks.settings.loading import validated
    from tasks.sources.hub import find

    base = write_model(folder / "base", "gpt2")
    config = validated({"model": {"name": str(base)}, "data": {"max_length": 32}})
    source = find("model", str(base), "main", offline=True)
    tokenizer = models.load_tokenizer(source, config.model)
    model, fresh = models.load_foundation(source, config, ("bad", "good"), tokenizer)
    adapters.save_adapter(
        adapters.attach_adapter(model, config, fresh, 1),
        tokenizer,
        config,
        bare_data(source),
        folder / "adapter",
        {"temperature": 1.0},
    )
    return folder / "adapter"


def make_rows(file: Path, rows: int) -> Path:
    """Texts of one to four sentences."""
    chance = random.Random(0)
    with file.open("w", encoding="utf-8") as opened:
        opened.write("id,text\n")
        for row in range(rows):
            text = ", ".join(chance.choices(NEGATIVE + POSITIVE, k=chance.randint(1, 4)))
            opened.write(f'r{row},"{text} {row}"\n')
    return file


def start(adapter: Path, rows: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows.cli", "predict", str(adapter), str(rows), str(output), "--offline"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> float:
    """Peak memory of the process, in MiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"predict failed with exit code {process.returncode}")
    return mib(usage.ru_maxrss)


def kill_at(process: subprocess.Popen[bytes], parts: int) -> None:
    """When so many parts are there."""
    while len(list(Path("mlruns/work").glob("predict-*/parts/*.json"))) < parts:
        if process.poll() is not None:
            raise SystemExit(f"predict ended with exit code {process.returncode} before it could be killed")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    from tasks.inference.prediction import CHUNK_ROWS

    with TemporaryDirectory() as root:
        os.chdir(root)
        adapter = make_adapter(Path(root))
        peaks = []
        print("|      rows | peak memory | seconds |\n| --------- | ----------- | ------- |", flush=True)
        for rows in (options.rows // 10, options.rows):
            file, began = make_rows(Path(f"{rows}.csv"), rows), time.monotonic()
            peaks.append(finish(start(adapter, file, Path(f"{rows}.out.csv"))))
            print(f"| {rows:9,} | {peaks[-1]:7.0f} MiB | {time.monotonic() - began:7.0f} |", flush=True)
        print(f"peak memory of ten times the rows: {peaks[1] / peaks[0] - 1:+.1%}", flush=True)
        whole = Path(f"{options.rows}.out.csv").replace("whole.csv")
        shutil.rmtree("mlruns/work")
        for kill in range(options.kills):
            parts = max(1, (kill + 1) * options.rows // CHUNK_ROWS // (options.kills + 1))
            kill_at(start(adapter, file, Path("killed.csv")), parts)
            print(f"killed with {parts} parts there", flush=True)
        finish(start(adapter, file, Path("killed.csv")))
        same = Path("killed.csv").read_bytes() == whole.read_bytes()
        print(f"output after {options.kills} kills: {'the same bytes' if same else 'DIFFERENT'}")
        if not same or peaks[1] > 1.1 * peaks[0]:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
