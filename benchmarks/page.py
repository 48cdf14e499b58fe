"""docs/benchmarks.md and its pictures, from what benchmarks/speed.py and benchmarks/growth.py have measured."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.peers import OURS, SAME_LOSSES, SCRIPTS
from tasks.evaluation.references import PROBE_TRAINING_ROWS as PROBE_ROWS

TITLES = {name: script.title for name, script in SCRIPTS.items()} | OURS
TRAIN_ROWS, EVAL_ROWS, EPOCHS = 8_530, 1_066, 3
"""Rotten Tomatoes and the whole job."""

Measurement = dict[str, Any]
Part = dict[str, Any]

PARTS = {
    "gpt2": "GPT-2 (124M, decoder)",
    "minilm": "all-MiniLM-L6-v2 (22M, encoder)",
    "bert": "BERT base (110M, encoder; random weights)",
}

TRIED = """\
- Unpadded (flattened) batches, one row of all tokens with block-diagonal attention: with rows of like length in a
  batch, padding is under 3 % already, and gathering and scattering the tokens costs about that; not built.
- bfloat16 on a CPU without units for it: five times slower. On GPUs and CPUs that have them (AMX), training uses it by
  autocast, from a width of 256 on. Rounding the factors of the large products alone (`fp32_precision`): a tenth slower.
- Frozen weights packed once for the matrix library: no faster in float32. In bfloat16 (AMX), forward products take a
  quarter less and backward ones the same; only torch's private operators can do it.
- One cast of what three products read (query, key, value) instead of three: no difference that could be measured.
- TF32 on GPUs: left off. Training is in bfloat16 there, and what is measured is to be exact.
- One load of the foundation model for baseline, probe and training: a load takes 0.13 s (MiniLM).
- int8 weights for evaluation: 1.6 times as fast, and a tenth of the predictions change; measured results must be exact.
- Larger evaluation batches without sorting: slower, for they hold more padding.
- Two threads for the logistic regressions of the references: they wait for each other, 4 to 17 s instead of 1.2.
- GPT-2's activation as x · sigmoid(2u), which is the same, in pieces that fit the cache: 6.1 to 6.7 ms forward and
  backward (448 tokens, bfloat16) against 4.2 to 4.6 of torch's own.
- `torch.compile` on a CPU, for any length of batch: no step done after three minutes of compiling, where all of
  MiniLM's training takes four.
- Dropping the base model's dropout: faster, and the training loss falls faster, but test accuracy does not; the model
  is trained as its authors meant it.
"""


def write_page(results: dict[str, Part], docs: Path) -> None:
    text = [HEAD]
    for name, title in PARTS.items():
        if name in results:
            text += [f"## {title}", machine_line(results[name]), speed_table(results[name])]
    if "minilm" in results:
        draw_losses(results["minilm"], docs / "benchmark-losses.png")
        text += [LOSSES, loss_table(results["minilm"]), "![Loss curves](benchmark-losses.png)"]
    if "job" in results:
        text += [JOB, machine_line(results["job"]), job_table(results["job"])]
    if "start" in results:
        text += [START, machine_line(results["start"]), start_table(results["start"])]
    if "tools" in results:
        text += [TOOLS, machine_line(results["tools"]), tools_table(results["tools"])]
    if "growth" in results:
        draw_growth(results["growth"]["measured"], docs / "benchmark-growth.png")
        text += [GROWTH, machine_line(results["growth"]), growth_table(results["growth"]["measured"])]
        text += ["![Growth](benchmark-growth.png)"]
    text += ["## Tried, and not worth it", TRIED]
    (docs / "benchmarks.md").write_text("\n\n".join(part.strip() for part in text) + "\n", encoding="utf-8")


HEAD = f"""
# How fast it is

Written by `make bench`, with what it measured; only the figures of the last section were measured by hand. All sides
train the same LoRA (r 8) with the same learning rate on the same rows of Rotten Tomatoes, one after the other, each in
a fresh process, in rounds that change order and seed. A figure is the median of the rounds, with the lowest and highest
behind it; a ratio is that of neighbours in one round.

- *training*: rows a second, without the first two steps and without validation.
- *whole job*: {TRAIN_ROWS:,} rows, {EPOCHS} epochs with validation, the test rows before and after. It was measured on
  fewer rows, because the notebook would need days, and computed for all sides alike: what does not depend on the rows,
  plus rows by measured rows a second. peft-flow's has all that it does besides: data check, references, intervals,
  pictures, MLflow, Prefect, the adapter read back in another process.
- *of the floor*: how much of the speed it would have if nothing but the matrix products of the real tokens took time.
"""

LOSSES = """
### Nobody wins by learning less

MiniLM, validation loss and test accuracy after the last epoch, mean of the rounds (lowest to highest). Padding
changes nothing that is learned, so both scripts with batches of 8 learn what the row without their padding shows.
"""

JOB = f"""
## The whole MiniLM job, all of it run: {TRAIN_ROWS:,} rows, {EPOCHS} epochs

*orchestration, tracking and analysis*: how much longer the run takes than its own training and evaluations alone.
The top half of the layers has r 16 here, so as many trained weights as all layers, and twice the learning rate, because
alpha / r is half.
"""

TOOLS = """
## Programs as they ship

MiniLM, LoRA (r 8), one epoch in batches of 16, a quarter as many validation rows; each program in an environment of its
own. *whole process* is from the command to its end, *training* what the program itself calls so, validation included.
peft-flow's run has besides: data check, references, the test rows before and after, intervals, pictures, MLflow,
Prefect, the adapter read back in another process.
"""

START = """
## From a command to the prompt

The demo, for the second time in its folder, and `predict` of 60 rows with its adapter, beside the first version that
was measured, with the packages of today. *outside of the run*: start, imports, the Prefect server, the end.
"""

GROWTH = """
## Growth

Preparing (reading, checking, cutting the splits, finding copies, tokenizing), predicting with a tiny model, and one
epoch of MiniLM, against rows; and one epoch of 65,536 words against the words of a text. Peak memory counts what is in
memory of mapped files too, which the system takes back where it is short.
"""


def machine_line(part: Part) -> str:
    machine = part["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['device']}, {machine['threads']} threads; {versions}; commit {machine['commit']}, {machine['date']}"
    )


def by_round(part: Part, name: str) -> list[Measurement]:
    found = [measured for measured in part["measured"] if measured["name"] == name]
    return sorted(found, key=lambda measured: measured["round"])


def names_in(part: Part) -> list[str]:
    order = [*SCRIPTS, *OURS]
    return sorted({measured["name"] for measured in part["measured"]} - {"floor"}, key=order.index)


def step_rate(measured: Measurement) -> float:
    return float(measured["step_rows"] / measured["step_seconds"])


def train_rate(measured: Measurement) -> float:
    """Rows a second; where lower layers are computed once, that is spread over the epochs."""
    rate = step_rate(measured)
    once = measured["trunk_seconds"]
    if not once or math.isnan(once):
        return rate
    rows = measured["rows"]["train"] * EPOCHS
    return rows / (rows / rate + once)


def eval_rate(measured: Measurement) -> float:
    return float(measured["eval_rows"] / measured["eval_seconds"])


def whole_job(measured: Measurement) -> float:
    """Seconds for all rows; see the head of the page."""
    rows, epochs = measured["rows"], measured["epochs"]
    rate, asked = step_rate(measured), eval_rate(measured)
    once = measured["trunk_seconds"] if measured["trunk_seconds"] > 0 else 0.0
    evaluated = 2 * rows["test"] + epochs * rows["validation"]
    fixed = measured["seconds"] - epochs * rows["train"] / rate - evaluated / asked - once
    seconds = fixed + EPOCHS * TRAIN_ROWS / rate + (2 + EPOCHS) * EVAL_ROWS / asked
    seconds += once * (TRAIN_ROWS + EVAL_ROWS) / (rows["train"] + rows["validation"])
    if measured["laps"]:  # the references take as long as the linear probe has rows
        seconds += measured["laps"]["references"] * (
            (PROBE_ROWS + EVAL_ROWS) / (min(PROBE_ROWS, rows["train"]) + rows["test"]) - 1
        )
    return float(seconds)


def spread(values: Sequence[float], form: str = ",.1f") -> str:
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def against(part: Part, ours: str, name: str, value: Callable[[Measurement], float], more_is_better: bool) -> str:
    ratios = []
    for one, other in zip(by_round(part, ours), by_round(part, name), strict=True):
        ratio = value(one) / value(other)
        ratios.append(ratio if more_is_better else 1 / ratio)
    return f"**{median(ratios):.2f}×** ({min(ratios):.2f}–{max(ratios):.2f})"


def tools_table(part: Part) -> str:
    rows = part["measured"][0]["rows"]
    table = [f"| {rows} rows | whole process, s | peft-flow is | training, s | peft-flow is | processor seconds |"]
    table.append("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(measured["name"] for measured in part["measured"]):
        rounds, cells = by_round(part, name), []
        for what in ("whole", "training"):
            ratio = against(part, "peft-flow", name, lambda measured, what=what: measured[what], False)
            cells += [spread([one[what] for one in rounds]), "" if name == "peft-flow" else ratio]
        cells.append(spread([one["processor"] for one in rounds]))
        table.append("| " + " | ".join((rounds[0]["title"], *cells)) + " |")
    return "\n".join(table)


def start_table(part: Part) -> str:
    """Both versions, and how many times as much the older one takes."""
    measured = part["measured"]
    old, now = names = list(dict.fromkeys(one["name"] for one in measured))
    table = [f"| | {' | '.join(names)} | ratio |", "| --- | --- | --- | --- |"]
    for what in measured[0]["found"]:
        sides = [[one["found"][what] for one in by_round(part, name)] for name in (old, now)]
        ratios = [before / after for before, after in zip(*sides, strict=True)]
        table.append(f"| {what} | {' | '.join(map(spread, sides))} | {spread(ratios, '.2f')} |")
    return "\n".join(table)


def speed_table(part: Part) -> str:
    floor = next(measured for measured in part["measured"] if measured["name"] == "floor")
    fastest = floor["flops"] / (4 * floor["layer_weights"] * floor["tokens"])
    lines = [
        "| | training, rows/s | peft-flow is | evaluation, rows/s | whole job, s | peft-flow is | start, s "
        "| peak memory, MiB | of the floor |",
        "| --- " * 9 + "|",
    ]
    for name in names_in(part):
        found = by_round(part, name)
        rates = [train_rate(measured) for measured in found]
        top = name == "peft-flow-top"
        cells = [
            TITLES[name],
            spread(rates, ",.2f" if median(rates) < 10 else ",.1f"),
            "" if name == "peft-flow" else against(part, "peft-flow", name, train_rate, True),
            spread([eval_rate(measured) for measured in found]),
            spread([whole_job(measured) for measured in found], ",.0f"),
            "" if name == "peft-flow" else against(part, "peft-flow", name, whole_job, False),
            spread([measured["start_seconds"] for measured in found]),
            spread([measured["peak_memory_mb"] for measured in found], ",.0f"),
            "" if top else f"{median(rates) / fastest:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        f"{padding_line(part)} The floor is {fastest:,.1f} rows/s: "
        f"{floor['flops'] / 1e9:,.0f} GFLOP/s measured, {floor['layer_weights'] / 1e6:,.1f}M weights in the layers' "
        f"matrices, {floor['tokens']:.1f} tokens a row, four operations each."
    )
    return "\n".join(lines) + "\n\n" + note


def padding_line(part: Part) -> str:
    padding = median(measured["padding"] for measured in by_round(part, "peft-flow"))
    return f"Padding in peft-flow's training batches: {padding:.1%} of all tokens."


def loss_table(part: Part) -> str:
    lines = ["| | validation loss | test accuracy |", "| --- | --- | --- |"]
    for name in names_in(part):
        found = by_round(part, name)
        if name in SAME_LOSSES:
            continue
        losses = [measured["validation_losses"][-1] for measured in found]
        accuracies = [measured["accuracy"] for measured in found]
        shown = [f"{mean(v):.3f} ({min(v):.3f}–{max(v):.3f})" for v in (losses, accuracies)]
        lines.append(f"| {TITLES[name]} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def job_table(part: Part) -> str:
    lines = [
        "| | whole job, s | peft-flow is | training, rows/s | peft-flow is | validation loss by seed "
        "| test accuracy by seed |",
        "| --- " * 7 + "|",
    ]
    for name in names_in(part):
        found = by_round(part, name)
        losses = ", ".join(f"{measured['validation_losses'][-1]:.3f}" for measured in found)
        accuracies = ", ".join(f"{measured['accuracy']:.3f}" for measured in found)
        rates = spread([train_rate(measured) for measured in found])
        seconds = spread([measured["seconds"] for measured in found], ",.0f")
        whole = training = ""
        if name != "peft-flow":
            whole = against(part, "peft-flow", name, lambda m: m["seconds"], False)
            training = against(part, "peft-flow", name, train_rate, True)
        lines.append(f"| {TITLES[name]} | {seconds} | {whole} | {rates} | {training} | {losses} | {accuracies} |")
    pairs = list(zip(by_round(part, "peft-flow"), by_round(part, "peft-flow-bare"), strict=True))
    overhead = [whole["seconds"] / bare["seconds"] - 1 for whole, bare in pairs]
    laps = by_round(part, "peft-flow")[0]["laps"]
    steps = {name: median(m["laps"][name] for m in by_round(part, "peft-flow")) for name in laps if name != "total"}
    notes = [
        f"Orchestration, tracking and analysis: **{median(overhead):+.1%}** "
        f"({min(overhead):+.1%} to {max(overhead):+.1%}). Seconds by step: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps.items())
        + ".",
        f"Top half of the layers: training {against(part, 'peft-flow-top', 'peft-flow', step_rate, True)} as fast, "
        f"{against(part, 'peft-flow-top', 'peft-flow', train_rate, True)} with the computing of the lower half once, "
        f"and the whole job {against(part, 'peft-flow-top', 'peft-flow', lambda m: m['seconds'], False)} as fast.",
        padding_line(part),
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes)


GROWING = {
    "prepare": ("preparing", "rows"),
    "predict": ("predicting", "rows"),
    "train": ("training", "rows"),
    "length": ("training, by length", "words of a text"),
}


def growth_table(measured: Sequence[Measurement]) -> str:
    lines = ["| | rows, or words of a text | seconds | peak memory, MiB |", "| --- | ---: | ---: | ---: |"]
    for point in sorted(measured, key=lambda point: list(GROWING).index(point["name"])):
        title = GROWING[point["name"]][0]
        lines.append(f"| {title} | {point['size']:,} | {point['seconds']:,.1f} | {point['peak_memory_mb']:,.0f} |")
    return "\n".join(lines)


def draw_growth(measured: Sequence[Measurement], file: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = Figure(figsize=(12, 6), layout="constrained", dpi=100)
    grid = figure.subplots(2, len(GROWING))
    for column, (name, (title, unit)) in enumerate(GROWING.items()):
        points = [point for point in measured if point["name"] == name]
        for axis, (value, label) in zip(
            grid[:, column], (("seconds", "seconds"), ("peak_memory_mb", "peak memory, MiB")), strict=True
        ):
            axis.plot([point["size"] for point in points], [point[value] for point in points], marker="o")
            axis.set(xscale="log", xlabel=unit, ylabel=label, title=title)
            axis.set_xticks([point["size"] for point in points])
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k: whole numbers would run into each other
            axis.xaxis.set_minor_formatter("")
            if value == "seconds":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("")
            else:
                axis.set_ylim(0, 1.1 * max(point[value] for point in points))
            axis.grid(alpha=0.3)
    figure.savefig(file, metadata={"Software": None})


def draw_losses(part: Part, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained", dpi=100)
    train, validation = figure.subplots(1, 2)
    for number, name in enumerate(name for name in names_in(part) if name not in SAME_LOSSES):
        for found in by_round(part, name):
            label = TITLES[name] if found["round"] == 0 else None
            rows, losses = zip(*found["losses"], strict=True)
            train.plot(rows, smooth(losses), color=f"C{number}", label=label, alpha=0.8, linewidth=1)
            epochs = range(1, len(found["validation_losses"]) + 1)
            validation.plot(epochs, found["validation_losses"], color=f"C{number}", marker=".", alpha=0.8, linewidth=1)
    train.set(xlabel="rows seen", ylabel="training loss, mean of five points", title="Training")
    validation.xaxis.get_major_locator().set_params(integer=True)
    validation.set(xlabel="epoch", ylabel="validation loss", title="Validation")
    figure.legend(*train.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, metadata={"Software": None})


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    return [mean(values[max(0, place - width + 1) : place + 1]) for place in range(len(values))]
