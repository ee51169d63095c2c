"""Accumulated batches weigh by their tokens, and batches of methods without tokens weigh alike."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from sslpipe.batch import IGNORED
from sslpipe.methods import Method, Output
from sslpipe.methods.parts.tokens import mean_over_tokens, tokens_a_rank
from sslpipe.train import train

from ..conftest import ROOT
from . import toy

CLASSES = 5
COUNTS = (1, 16, 0, 3)  # tokens that each batch of four is asked for, of 16
ACCUMULATED = 4


class Guess(Method):
    """Guesses a class of each pixel; how many are asked for differs from batch to batch."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.encoder = nn.Linear(3, CLASSES, dtype=dtype)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                start = torch.arange(parameter.numel()).reshape(parameter.shape) % 7 - 3
                parameter.copy_(start / (10 + number))

    def forward(self, batch):
        pixels = batch.views["global"][0].permute(0, 2, 3, 1).to(self.encoder.weight.dtype)
        logits = self.encoder(pixels.flatten(0, 2))
        targets = torch.arange(len(logits)) % CLASSES
        own = int(batch.uids[0]) // 8  # the step; 8 samples of 16 pixels
        asked = COUNTS[own % len(COUNTS)] * 8 // (8 // len(batch.uids))
        if int(batch.uids[0]) % 8:  # the second of two ranks is asked for less
            asked //= 2
        targets[asked:] = IGNORED
        weight = tokens_a_rank(targets != IGNORED)
        loss = mean_over_tokens(logits, targets, weight=weight)
        return Output(loss, {"first": targets[0].float()}, weight)


class GuessTwice(Guess):
    """And wants small guesses, a mean over twice a row's pixels but in one batch."""

    def numbers(self, batch):
        asked = super().forward(batch).weight
        shown = torch.full_like(asked, 2.0 if int(batch.uids[0]) // 8 == 1 else 32.0)
        return torch.stack([asked, shown])

    def forward(self, batch):
        output, weight = super().forward(batch), self.numbers(batch)
        pixels = batch.views["global"][0].permute(0, 2, 3, 1).to(self.encoder.weight.dtype)
        small = self.encoder(pixels.flatten(0, 2))[: int(weight[1])].square().mean()
        terms = torch.stack([output.loss, 3 * small])
        return Output(terms.sum(), output.metrics, weight, terms)

    def term_weights(self, batch):
        return self.numbers(batch)


def run(out, *, rank=0, world_size=1, steps=1, clip=None, method=None):
    recipe = toy.recipe(accumulate=ACCUMULATED, clip_norm=clip, epochs=1, warmup_epochs=0)
    pipe = toy.Pipe(recipe, length=8, rank=rank, world_size=world_size)
    method = method or Guess()
    train(pipe, method, recipe.train, out=out, max_steps=steps)
    return method, pipe


def joined(world_size, method=None):
    """The mean over all tokens of the step's batches, of all ranks, and its gradients."""
    method = method or Guess()
    total, count = 0.0, 0
    for rank in range(world_size):
        pipe = toy.Pipe(toy.recipe(), length=8, rank=rank, world_size=world_size)
        for step in range(ACCUMULATED):
            batch = pipe.batch(step)
            output = method(batch)
            losses = output.loss if output.terms is None else output.terms
            total = total + losses * output.weight.clamp_min(1)
            count = count + output.weight
    loss = (total / count).sum()
    loss.backward()
    return [p.grad for p in method.parameters()], loss.item()


@pytest.fixture
def seen(monkeypatch):
    """Gradients as the optimizer gets them."""
    found = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        grads = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        found.append(grads)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return found


@pytest.mark.parametrize("kind", [Guess, GuessTwice])
def test_a_step_is_of_the_mean_over_all_its_tokens(kind, seen, tmp_path):
    run(tmp_path, method=kind())
    expected, loss = joined(1, kind())
    for got, wanted in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_mean_of_the_batches_means_is_another(seen, tmp_path):
    """The naive error: each batch weighs alike."""

    class Alike(Guess):
        def forward(self, batch):
            output = super().forward(batch)
            return Output(output.loss, output.metrics)

    run(tmp_path, method=Alike())
    expected, _ = joined(1)
    assert (seen[0][0] - expected[0]).abs().max() > 0.1 * expected[0].abs().max()


def test_gradients_are_clipped_after_the_division(seen, tmp_path):
    expected, _ = joined(1)
    norm = torch.cat([g.flatten() for g in expected]).norm().item()
    run(tmp_path / "wide", clip=2 * norm)
    run(tmp_path / "narrow", clip=norm / 2)
    wide, narrow = (torch.cat([g.flatten() for g in grads]).norm().item() for grads in seen)
    assert wide == pytest.approx(norm)
    assert narrow == pytest.approx(norm / 2, rel=1e-4)


def test_a_step_without_any_token_moves_nothing(seen, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "COUNTS", (0, 0, 0, 0))
    run(tmp_path)
    assert all(not gradient.any() for gradient in seen[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Guess, GuessTwice])
def test_two_ranks_of_unequal_tokens_are_one(kind, tmp_path):
    command = [sys.executable, "-m", "tests.train.test_weights", kind.__name__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(2)]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    expected, _ = joined(2, kind())
    for rank in range(2):
        for got, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_the_loss_is_torch_s_where_there_is_one_process():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, CLASSES, generator=generator, dtype=torch.float64)
    targets = torch.arange(9) % CLASSES
    targets[::2] = IGNORED
    assert tokens_a_rank(targets != IGNORED) == 4
    torch.testing.assert_close(mean_over_tokens(logits, targets), F.cross_entropy(logits, targets))
    assert mean_over_tokens(logits, torch.full((9,), IGNORED)) == 0


def script(kind, folder, rank):
    """What each of two ranks does: its gradients as the optimizer gets them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        grads = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        torch.save(grads, f"{folder}/{rank}.pt")
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = watched
    run(Path(folder) / "run", rank=rank, world_size=2, method=globals()[kind]())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    script(sys.argv[1], sys.argv[2], int(sys.argv[3]))
