"""Fit with Lightning on several CPU processes: SHARDS FOLDER RANKS STEPS [CHECKPOINT] [KILLED].

Each rank writes the uids that it saw to FOLDER/seen.STEPS.RANK.json. With KILLED all are killed
behind that step, and leave nothing but checkpoints, which are written every second step.
"""

import json
import os
import signal
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from sslpipe.integrations.lightning import StreamModule
from tests.integrations.trainers import Noting, small


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.method = Noting()

    def training_step(self, batch, number):
        return self.method(batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Kill(Callback):
    """Ends all ranks behind step `after`, as a machine that is lost does."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero and trainer.global_step == self.after:
            for process in trainer.strategy.launcher.procs:  # which this rank has started
                process.kill()
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    shards, folder, ranks, steps, *resume = sys.argv[1:]
    killed = int(resume.pop()) if resume and resume[-1].isdigit() else 0
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=2)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=int(ranks), strategy="ddp" if int(ranks) > 1 else "auto",
        max_steps=int(steps), max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[keep, *([Kill(killed)] if killed else [])],
    )  # fmt: skip
    module = Module()
    data = StreamModule(small(), shards=shards)
    trainer.fit(module, data, ckpt_path=resume[0] if resume else None, weights_only=False)
    path = Path(folder, f"seen.{steps}.{trainer.global_rank}.json")
    path.write_text(json.dumps(module.method.seen))


if __name__ == "__main__":
    main()
