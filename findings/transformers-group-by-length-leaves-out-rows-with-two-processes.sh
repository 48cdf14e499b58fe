#!/usr/bin/env bash
# transformers 5.24.0, accelerate 1.15.0, datasets 5.2.0, torch 2.13.0, Python 3.11.
#
# With train_sampling_strategy="group_by_length" and two processes on a CPU, Trainer trains some rows twice in an epoch
# and others not at all, from the second epoch on, without a word. The sampler draws its order from the global generator
# of each process; dropout on a CPU draws from the same one, as many numbers as a batch has, and the processes' batches
# differ in length. So each process orders the rows in its own way, and takes every second batch of that. With "random"
# the sampler has a generator of its own, and every row comes once.
#
# Seen, different rows of 64 in each of three epochs: random: [64, 64, 64]   group_by_length: [64, 55, 50]
# Expected: 64 in each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.24.0 datasets==5.2.0 accelerate==1.15.0
cd "$folder"
cat >train.py <<'PYTHON'
import json
import os

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

ROWS, STRATEGY = 64, os.environ["STRATEGY"]
words = [[5] * (2 + (7 * row) % 30) for row in range(ROWS)]
labels = [row % 2 for row in range(ROWS)]
data = Dataset.from_dict({"input_ids": words, "labels": labels, "row": list(range(ROWS))})
size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
seen: list[list[int]] = []


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    seen[-1].extend(row["row"] for row in rows)
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


class Epochs(TrainerCallback):
    def on_epoch_begin(self, *arguments, **named):
        seen.append([])


settings = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "report_to": [], "disable_tqdm": True}
settings |= {"save_strategy": "no", "logging_strategy": "no", "remove_unused_columns": False, "use_cpu": True}
arguments = TrainingArguments("out", train_sampling_strategy=STRATEGY, **settings)
model = BertForSequenceClassification(BertConfig(**size))
Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Epochs()]).train()
with open(f"{STRATEGY}-{os.environ['RANK']}.json", "w") as file:
    json.dump(seen, file)
PYTHON
for strategy in random group_by_length; do
    # by files: see torchrun-standalone-runs-code-from-the-network.sh
    STRATEGY=$strategy OMP_NUM_THREADS=1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 GLOO_SOCKET_IFNAME=lo HF_HUB_OFFLINE=1 \
        venv/bin/python -m torch.distributed.run --nproc-per-node 2 --local-addr 127.0.0.1 \
        --rdzv-backend c10d --rdzv-conf store_type=file --rdzv-endpoint "$folder/$strategy" train.py >/dev/null 2>&1
done
venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

found = {}
for strategy in ("random", "group_by_length"):
    first, second = (json.loads(Path(f"{strategy}-{rank}.json").read_text()) for rank in (0, 1))
    found[strategy] = [len({*one, *two}) for one, two in zip(first, second)]
print(found)
assert found["random"] == [64, 64, 64]
assert found["group_by_length"] == [64, 55, 50], "other rows are left out now, or none"
PYTHON
