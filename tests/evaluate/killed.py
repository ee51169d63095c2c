"""A run of a trained protocol that is killed after its first epoch and goes on."""

import pytest
import torch

from sslpipe.evaluate import fitting


def whole_and_resumed(train, folder, monkeypatch, *, epoch):
    """What a run writes in the end, and what one writes that was killed after `epoch` steps.

    `train(file)` trains, or goes on, and keeps its state in the file.
    """

    def run(name):
        train(folder / name)
        return torch.load(folder / name, weights_only=True)

    whole, saved = run("whole"), fitting.save

    def killed(run, step, path):
        saved(run, step, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    assert torch.load(folder / "killed", weights_only=True)["step"] == epoch
    return whole, run("killed")
