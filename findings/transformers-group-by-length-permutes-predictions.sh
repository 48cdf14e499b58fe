#!/usr/bin/env bash
# transformers 5.24.0, datasets 5.2.0, torch 2.13.0, Python 3.11.
#
# With train_sampling_strategy="group_by_length", whose name and documentation speak of training, Trainer.predict gives
# its answers in another order than the rows that it was asked about. The order hangs on the seed. Whoever puts
# `predictions` beside the rows, as most scripts do, gives most rows the answer to another one, and no score shows it:
# labels are permuted alike.
#
# Seen, for rows numbered 0 to 7: random: [0, 1, 2, 3, 4, 5, 6, 7]   group_by_length: [1, 6, 7, 0, 3, 2, 5, 4]
# Expected: the order of the rows for both; prediction neither trains nor samples.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.24.0 datasets==5.2.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

lengths = [2, 9, 3, 8, 4, 7, 5, 6]
words = [[5] * length for length in lengths]
data = Dataset.from_dict({"input_ids": words, "labels": list(range(8))})
size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


def order(strategy: str) -> list[int]:
    settings = {"per_device_eval_batch_size": 2, "report_to": [], "disable_tqdm": True, "seed": 42}
    arguments = TrainingArguments(output_dir="out", train_sampling_strategy=strategy, **settings)
    model = BertForSequenceClassification(BertConfig(**size, num_labels=8))
    return Trainer(model=model, args=arguments, data_collator=collate).predict(data).label_ids.tolist()


found = {strategy: order(strategy) for strategy in ("random", "group_by_length")}
print(found)
assert found["random"] == list(range(8))
assert found["group_by_length"] == [1, 6, 7, 0, 3, 2, 5, 4], "predictions are in another order now, or in that of rows"
PYTHON
