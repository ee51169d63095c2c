"""Lightning: exact after a kill in the middle and at the end of an epoch, on other ranks too."""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sslpipe.integrations.lightning import StreamModule

from ..conftest import ROOT
from .trainers import Noting, load, small, uids

EPOCH = 5  # batches: 45 images in batches of 8


class Module(lightning.LightningModule):
    def __init__(self, ask_for_steps=False):
        super().__init__()
        self.method, self.ask_for_steps = Noting(), ask_for_steps

    def training_step(self, batch, number):
        loss = self.method(batch).loss
        self.log("loss", loss, on_epoch=True, batch_size=len(batch.uids))
        return loss

    def configure_optimizers(self):
        if self.ask_for_steps:  # which has Lightning set its loaders up early
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def fit(folder, packed, *, resume=None, ask_for_steps=False, **arguments):
    inside = "max_steps" in arguments
    when = {"every_n_train_steps": 2} if inside else {"save_on_train_epoch_end": True}
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, **when)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=[keep], enable_progress_bar=False,
        enable_model_summary=False, **arguments,
    )  # fmt: skip
    module, data = Module(ask_for_steps), StreamModule(small(), shards=packed)
    trainer.fit(module, data, ckpt_path=resume, weights_only=False)
    return module.method.seen, data


@pytest.mark.filterwarnings("ignore")  # Lightning's own, on workers and on the number of batches
@pytest.mark.parametrize("ask_for_steps", [False, True])
def test_a_checkpoint_inside_an_epoch(packed, tmp_path, ask_for_steps):
    plain = uids(packed, 12)
    first, _ = fit(tmp_path, packed, max_steps=8, max_epochs=-1, ask_for_steps=ask_for_steps)
    assert first == plain[:8]
    again, _ = fit(
        tmp_path, packed, max_steps=12, max_epochs=-1, ask_for_steps=ask_for_steps,
        resume=tmp_path / "step=8.ckpt",
    )  # fmt: skip
    assert again == plain[8:12]


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_at_the_end_of_an_epoch(packed, tmp_path):
    plain = uids(packed, 3 * EPOCH)
    first, _ = fit(tmp_path, packed, max_epochs=2)
    assert first == plain[: 2 * EPOCH]
    again, data = fit(tmp_path, packed, max_epochs=3, resume=tmp_path / f"step={2 * EPOCH}.ckpt")
    assert again == plain[2 * EPOCH :]
    assert data.pipe.step == 3 * EPOCH


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_one_rank_goes_on_on_two(packed, tmp_path):
    """The state in the checkpoint is the plain pipeline's, of which any rank takes its part."""
    fit(tmp_path, packed, max_steps=4, max_epochs=-1)
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["StreamModule"]
    seen = []
    for rank in range(2):
        with load(packed, rank=rank, world_size=2) as pipe:
            pipe.load_state_dict(saved)
            seen += next(iter(pipe)).uids.tolist()
    assert sorted(seen) == sorted(uids(packed, 5)[4])


def run_ddp(packed, folder, *arguments):
    """`fit_ddp.py` in processes of its own; the exit status of the first."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.integrations.fit_ddp", packed, folder]
    done = subprocess.run(
        [*map(str, command), *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    return done.returncode, done.stderr


def seen(folder, steps, ranks):
    """The uids of all ranks, by step."""
    parts = [
        json.loads((folder / f"seen.{steps}.{rank}.json").read_text()) for rank in range(ranks)
    ]
    return [sorted(itertools.chain(*step)) for step in zip(*parts, strict=True)]


@pytest.mark.slow
def test_two_ranks_that_are_killed_go_on_exactly_on_two_and_on_one(packed, tmp_path):
    """Killed behind step 3, inside an epoch of 5; the checkpoint is that of step 2."""
    plain = [sorted(step) for step in uids(packed, 8)]
    status, _ = run_ddp(packed, tmp_path, 2, 20, 3)
    assert status == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["step=2.ckpt"]
    for ranks, steps in ((2, 6), (1, 8)):
        status, said = run_ddp(packed, tmp_path, ranks, steps, tmp_path / "step=2.ckpt")
        assert status == 0, said[-3000:]
        assert seen(tmp_path, steps, ranks) == plain[2:steps]
