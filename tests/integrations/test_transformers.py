"""Hugging Face's Trainer: nothing is skipped, nothing replayed, teachers follow."""

import json

import pytest
from transformers import TrainingArguments

from sslpipe.errors import RecipeError, StateError
from sslpipe.integrations.transformers import StreamTrainer

from .trainers import Noting, load, uids


def arguments(folder, **given):
    return TrainingArguments(
        str(folder), use_cpu=True, report_to=[], ignore_data_skip=True, logging_steps=1,
        save_strategy="steps", disable_tqdm=True, **given,
    )  # fmt: skip


def train(folder, packed, resume=None, **given):
    method = Noting()
    with load(packed) as pipe:
        StreamTrainer(pipe, model=method, args=arguments(folder, **given)).train(resume)
    return method


@pytest.mark.filterwarnings("ignore")  # of transformers, on pinned memory
@pytest.mark.parametrize(("accumulate", "kept", "batches"), [(1, 3, 3), (1, 5, 5), (2, 2, 4)])
def test_a_run_goes_on_exactly(packed, tmp_path, accumulate, kept, batches):
    """Inside an epoch of 5 batches, at its end, and with two batches a step."""
    plain = uids(packed, 16)
    given = {"gradient_accumulation_steps": accumulate, "save_steps": kept}
    first = train(tmp_path, packed, max_steps=kept, **given)
    assert first.seen == plain[:batches]
    state = json.loads((tmp_path / f"checkpoint-{kept}" / "stream.json").read_text())
    assert state["step"] == batches
    again = train(tmp_path, packed, resume=True, max_steps=kept + 2, **given)
    assert again.seen == plain[batches : batches + 2 * accumulate]
    assert again.progress == [round((kept + 1) / (kept + 2), 6), 1.0]


@pytest.mark.filterwarnings("ignore")
def test_teachers_follow_after_each_step(packed, tmp_path):
    method = train(tmp_path, packed, max_steps=4, gradient_accumulation_steps=2, save_steps=4)
    assert method.progress == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.filterwarnings("ignore")
def test_epochs_are_counted_in_steps(packed, tmp_path):
    method = train(tmp_path, packed, num_train_epochs=2, gradient_accumulation_steps=2)
    assert method.seen == uids(packed, 10)
    assert len(method.progress) == 5


def test_arguments_that_skip_batches_are_refused(packed, tmp_path):
    given = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=1)
    with load(packed) as pipe, pytest.raises(RecipeError, match="write ignore_data_skip=True"):
        StreamTrainer(pipe, model=Noting(), args=given)


def test_a_checkpoint_without_a_state_is_refused(packed, tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(StateError, match=r"has no stream.json"):
        train(tmp_path, packed, resume=str(tmp_path / "checkpoint-3"), max_steps=4)
