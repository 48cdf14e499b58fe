"""What each process of a training has of a batch. That they add up to one process, see test_training_group.py."""

import pytest
import torch

from tasks.training.ranks import ALONE, Ranks


def batch(rows: int) -> dict[str, torch.Tensor]:
    lengths = torch.arange(rows, 0, -1)
    mask = (torch.arange(rows)[None] < lengths[:, None]).long()
    return {"input_ids": mask * 7, "attention_mask": mask, "labels": torch.arange(rows)}


@pytest.mark.parametrize(("rows", "parts"), [(12, (4, 4, 4)), (9, (4, 4, 1)), (8, (4, 4, 0)), (2, (2, 0, 0))])
def test_each_row_of_a_batch_is_that_of_one_process(rows: int, parts: tuple[int, ...]) -> None:
    whole = batch(rows)
    mine = [Ranks(number, 3).part(whole, most_rows=12) for number in range(3)]
    assert tuple(len(part.get("labels", ())) for part in mine) == parts
    assert torch.equal(torch.cat([part["labels"] for part in mine if part]), whole["labels"])
    longest = [rows - sum(parts[:number]) for number in range(3)]
    for part, length in zip(mine, longest, strict=True):
        assert not part or part["input_ids"].shape[1] == length, "no padding but its own"


def test_one_process_tells_itself_what_it_says() -> None:
    whole, sampler, value = batch(3), torch.utils.data.SequentialSampler(range(3)), object()
    assert ALONE.part(whole, 12) is whole and ALONE.order(sampler) is sampler
    assert ALONE.told(value) is value and ALONE.gathered(value) == [value]


def test_processes_whose_weights_differ_are_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    model, others = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    others.load_state_dict(model.state_dict())
    said: list[str] = []
    monkeypatch.setattr(Ranks, "gathered", lambda self, value: said.append(value) or list(said))
    Ranks(0, 2).check_alike(model, 3)
    Ranks(1, 2).check_alike(others, 3)
    with torch.no_grad():
        others.bias[0] = torch.nextafter(others.bias[0], torch.tensor(9.0))
    with pytest.raises(RuntimeError, match="different weights after step 3"):
        Ranks(1, 2).check_alike(others, 3)
