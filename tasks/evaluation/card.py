"""The model card of an adapter: what it is, what it was trained on, how good it is, how to use it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tasks.base.machine import public_version
from tasks.base.records import Comparison, PreparedData, TrainedAdapter
from tasks.base.verdict import capital
from tasks.base.words import plain
from tasks.base.work import ELSEWHERE
from tasks.evaluation.wording import caution, headline, ladder_table, leak_sentence, step_sentence
from tasks.scores.objective import objective, selection_metric
from tasks.settings.config import RunConfig


def model_card(
    config: RunConfig,
    data: PreparedData,
    trained: TrainedAdapter,
    result: Comparison,
    quantization: Mapping[str, Any] | None = None,
) -> str:
    """README.md of the adapter folder, with the metadata block that model hubs read; `quantization` is that of the
    adapter's settings."""
    task, adapted = objective(result.task), (*trained.target_modules, *config.adapter.target_parameters)
    chosen_by = selection_metric(task, config.training.selection_metric).name
    return "\n\n".join(
        [
            f"---\n{metadata(config, data, result)}---",
            f"# {config.run_name()}",
            f"A {config.adapter.method} adapter that {task.purpose} {quoted(data.label_names)}. It needs its "
            f"foundation model `{data.model.name}` at revision `{data.model.revision}`.",
            "## How good it is",
            f"**{capital(result.verdict)}.** {headline(config, result)}",
            *([plain(caution(result.cautions))] if result.cautions else []),
            step_sentence(result),
            ladder_table(result),
            "The foundation model's head is untrained: its score is chance, not skill."
            if trained.fresh_modules
            else f"The foundation model came with a head of its own; {task.head_taken_as} {quoted(data.label_names)}.",
            f"Leakage: {leak_sentence(result)}.",
            task.calibration_note(result.calibration),
            "## What it was trained on",
            f"`{config.data.name}`: {data.rows('train'):,} training, {data.rows('validation'):,} validation and "
            f"{data.rows('test'):,} test rows; text from {quoted(data.text_columns)}, at most "
            f"{config.data.max_length} tokens of it ({data.truncated:,} rows were longer). Content fingerprint "
            f"`{data.fingerprint}`.",
            *(f"- {note}" for note in data.notes),
            "## How it was trained",
            f"{trained.steps} optimizer steps; the checkpoint of step {trained.best_step} scored best by validation "
            f"{chosen_by}. {trained.trainable_parameters:,} of {trained.total_parameters:,} "
            f"parameters were trained, in {quoted(adapted) or 'the prompt'} and the head. Seed "
            f"{config.seed}.",
            "```yaml\n" + yaml.safe_dump(hyperparameters(config), sort_keys=False, allow_unicode=True) + "```",
            f"Made with peft-flow {public_version('peft-flow')}, peft {public_version('peft')}, transformers "
            f"{public_version('transformers')} and torch {public_version('torch')}.",
            "## How to use it",
            usage(config, data, task.snippet(trained.fitted, data.label_names), quantization),
        ]
    )


def metadata(config: RunConfig, data: PreparedData, result: Comparison) -> str:
    block = {
        "base_model": data.model.name,
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["peft", config.adapter.method, "text-classification"],
        "model-index": [
            {
                "name": config.run_name(),
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {
                            "name": config.data.name,
                            "type": config.data.name,
                            "split": config.data.test_split,
                        },
                        "metrics": [
                            {"type": name, "value": round(value, 6)}
                            for name, value in result.rung("tuned").values.items()
                        ],
                    }
                ],
            }
        ],
    }
    return yaml.safe_dump(block, sort_keys=False, allow_unicode=True)


def hyperparameters(config: RunConfig) -> dict[str, object]:
    return config.model_dump(mode="json", include={"adapter": True, "training": True}, exclude=ELSEWHERE)


def quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def usage(config: RunConfig, data: PreparedData, snippet: str, quantization: Mapping[str, Any] | None) -> str:
    revision = "" if data.model.is_local else f"    revision={data.model.revision!r},\n"
    argument = quantized_argument(quantization)
    imported = "AutoModelForSequenceClassification, AutoTokenizer" + ", BitsAndBytesConfig" * bool(argument)
    return f"""```python
from peft import PeftModel
from transformers import {imported}

base = AutoModelForSequenceClassification.from_pretrained(
    {data.model.name!r},
{revision}    dtype={config.model.dtype!r},
{argument}    num_labels={len(data.label_names)},
    ignore_mismatched_sizes=True,
)
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model.config.pad_token_id = tokenizer.pad_token_id
logits = model(**tokenizer("a text", return_tensors="pt")).logits
{snippet}
```
"""


def quantized_argument(quantization: Mapping[str, Any] | None) -> str:
    """Of `from_pretrained`; a model that is quantised in its own files needs none."""
    if not quantization or quantization["stored"]:
        return ""
    kinds = {"nf4": f"load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype={quantization['compute']!r}"}
    kind = kinds.get(quantization["kind"], "load_in_8bit=True, llm_int8_threshold=0.0")
    skip = f"llm_int8_skip_modules={quantization['skip']!r}"
    return f"    quantization_config=BitsAndBytesConfig(\n        {kind},\n        {skip},\n    ),\n"
