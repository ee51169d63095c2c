import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sslpipe.errors import RecipeError, SslpipeError, StateError
from sslpipe.process import TURN
from sslpipe.train import Every, Silent, train
from sslpipe.train.schedules import cosine_rate


def start(toy, out, *, length=5, method=None, pipe=None, **options):
    """Train the toy for its 4 epochs; `train_` settings are those of the recipe."""
    settings = {k[6:]: options.pop(k) for k in list(options) if k.startswith("train_")}
    recipe = toy.recipe(**settings)
    pipe = pipe or toy.Pipe(recipe, length=length)
    method = method or toy.Toy(dropout=0.5, norm=True)
    return method, train(pipe, method, recipe.train, out=out, **options)


def rate(step):
    """The toy's learning rate: 5 of 20 steps up to 1e-2, a cosine to 1e-5."""
    up = 1e-2 * step / 4
    return up if step < 5 else cosine_rate(step - 5, total=15, start=1e-2, end=1e-5)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_is_the_loop_written_out(toy, tmp_path):
    """AdamW with warm-up, cosine and rising weight decay, against torch by hand."""
    method, result = start(toy, tmp_path, method=toy.Toy())
    assert (result.steps, result.total) == (20, 20)

    ours = toy.Toy()
    pipe = toy.Pipe(toy.recipe())
    trained = [ours.encoder.layer, ours.head]
    optimizer = torch.optim.AdamW(
        [{"params": [m.weight for m in trained]}, {"params": [m.bias for m in trained]}]
    )
    for step in range(20):
        lr = rate(step)
        decay = 0.2 - 0.05 * (1 + torch.cos(torch.tensor(torch.pi * step / 20, dtype=float)))
        for group, scale in zip(optimizer.param_groups, (1.0, 0.0), strict=True):
            group["lr"], group["weight_decay"] = lr, decay.item() * scale
        optimizer.zero_grad()
        ours(pipe.batch(step)).loss.backward()
        optimizer.step()
        ours.after_step((step + 1) / 20)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert method.progress == [(step + 1) / 20 for step in range(20)]


@pytest.mark.parametrize("stop", [1, 5, 7, 19])
def test_stopped_and_resumed_is_bit_identical(toy, tmp_path, stop):
    """With dropout, batch norm, an EMA teacher and a step counter in the method."""
    whole, _ = start(toy, tmp_path / "whole")
    _, first = start(toy, tmp_path / "parts", max_steps=stop)
    assert first.steps == stop
    fresh = toy.Toy(dropout=0.5, norm=True, seed=99)
    resumed, second = start(toy, tmp_path / "parts", method=fresh, resume=True)
    assert second.steps == 20
    assert same(resumed, whole)
    assert whole.steps == 20


@pytest.mark.parametrize(("accumulate", "stop"), [(2, 3), (3, 4)])
def test_resume_where_steps_straddle_epochs(toy, tmp_path, accumulate, stop):
    options = {"train_accumulate": accumulate}
    whole, result = start(toy, tmp_path / "whole", **options)
    assert result.total == 20 // accumulate
    start(toy, tmp_path / "parts", max_steps=stop, **options)
    resumed, _ = start(toy, tmp_path / "parts", resume=True, **options)
    assert same(resumed, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(toy, tmp_path, number):
    before = signal.getsignal(number)
    show = toy.KillAt(7, number)
    _, result = start(toy, tmp_path / "parts", progress=show)
    assert (result.steps, result.stopped_by) == (7, number)
    (message,) = show.messages
    assert "stopped after step 7 of 20" in message
    assert "--resume" in message
    assert signal.getsignal(number) is before
    resumed, _ = start(toy, tmp_path / "parts", resume=True)
    whole, _ = start(toy, tmp_path / "whole")
    assert same(resumed, whole)


def test_a_run_that_ends_by_itself_was_not_stopped(toy, tmp_path):
    """A signal during the last step has nothing left to stop."""
    _, result = start(toy, tmp_path, progress=toy.KillAt(20, signal.SIGINT))
    assert (result.steps, result.stopped_by) == (20, 0)


def test_killed_and_resumed_is_bit_identical(toy, tmp_path):
    """SIGKILL of a real process at step 8, whose last checkpoint is that of step 6."""
    script = [sys.executable, str(Path(__file__).with_name("toy.py")), str(tmp_path / "parts")]
    killed = subprocess.run([*script, "--kill", "8"], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    every = Every(log=3, monitor=5, save=2)
    fresh = {"seed": 99, "dropout": 0.5}
    resumed, _ = start(toy, tmp_path / "parts", method=toy.Toy(**fresh), resume=True, every=every)
    whole, _ = start(toy, tmp_path / "whole", method=toy.Toy(dropout=0.5), every=every)
    assert same(resumed, whole)
    left, right = rows(tmp_path / "parts"), rows(tmp_path / "whole")
    steps = [3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert [row["step"] for row in left] == [row["step"] for row in right] == steps
    assert [row["loss"] for row in left] == [row["loss"] for row in right]


def test_rows_hold_everything(toy, tmp_path):
    _, result = start(toy, tmp_path, every=Every(log=4, monitor=8))
    table = rows(tmp_path)
    assert [row["step"] for row in table] == [4, 5, 8, 10, 12, 15, 16, 20]
    assert result.metrics == table[-1]
    assert table[0].keys() == {
        "step", "epoch", "loss", "norm", "lr", "weight_decay", "replaced", "images_per_s",
        "data_wait", "data_lost",
    }  # fmt: skip
    monitored = [row["step"] for row in table if "feature_rankme" in row]
    assert monitored == [5, 8, 10, 15, 16, 20]  # every 8th step and the ends of epochs
    assert table[1].keys() - table[0].keys() == {"feature_std", "feature_rankme"}
    assert [row["epoch"] for row in table] == [0.8, 1.0, 1.6, 2.0, 2.4, 3.0, 3.2, 4.0]
    assert all(
        0 <= row["data_wait"] <= row["data_lost"] <= 1 and row["images_per_s"] > 0 for row in table
    )
    assert table[0]["lr"] == rate(3)


def test_logging_monitoring_and_saving_change_nothing(toy, tmp_path):
    quiet, _ = start(toy, tmp_path / "a", every=Every(log=1000, monitor=1000))
    busy, _ = start(toy, tmp_path / "b", every=Every(log=1, monitor=1, save=1, keep=1))
    assert same(quiet, busy)


def test_checkpoints_of_epochs_are_kept(toy, tmp_path):
    start(toy, tmp_path, every=Every(keep=2))
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["epoch-0002.pt", "epoch-0004.pt", "last.pt"]
    assert torch.load(tmp_path / "epoch-0002.pt")["step"] == 10


def test_accumulated_batches_are_one_large_batch(toy, tmp_path):
    """Loss and gradient are means over samples, so 2 x 8 equals 16 at the same peak rate."""
    accumulated, a = start(toy, tmp_path / "a", method=toy.Toy(), train_accumulate=2)
    text = toy.RECIPE.replace("batch_size: 8", "batch_size: 16")
    pipe = toy.Pipe(toy.recipe(text))
    small = toy.Pipe(toy.recipe())

    def join(step):
        a, b = small.batch(2 * step), small.batch(2 * step + 1)
        views = {"global": torch.cat([a.views["global"], b.views["global"]], dim=1)}
        return type(a)(**{**a.asdict(), "views": views, "keys": a.keys + b.keys})

    pipe.batch, pipe.length = join, 5
    recipe = toy.recipe(text, epochs=2)
    joined = toy.Toy()
    # the warm-up of 1 epoch is 5 steps there and 5 / 2, rounded to even, here
    settings = recipe.train.model_copy(update={"warmup_epochs": 2 / 5})
    b = train(pipe, joined, settings, out=tmp_path / "b")
    assert (a.steps, b.steps) == (10, 10)
    for name, tensor in joined.state_dict().items():
        torch.testing.assert_close(accumulated.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert a.metrics["lr"] == b.metrics["lr"]
    assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], rel=1e-5)


def test_bf16_runs_the_forward_in_bf16(toy, tmp_path):
    method = toy.Toy()
    kinds = []
    method.head.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    start(toy, tmp_path, method=method, train_precision="bf16", max_steps=2)
    assert set(kinds) == {torch.bfloat16}
    assert method.head.weight.dtype == torch.float32


def test_fp16_needs_cuda(toy, tmp_path):
    with pytest.raises(RecipeError, match="'fp16' needs a CUDA device, this is cpu; set bf16"):
        start(toy, tmp_path, train_precision="fp16")


@pytest.mark.parametrize("every", [Every(), Every(log=1), Every(log=1000, save=13)])
def test_a_loss_that_is_not_finite_stops_with_step_and_keys(toy, tmp_path, every):
    pipe = toy.Pipe(toy.recipe())
    pipe.poison = 12
    with pytest.raises(SslpipeError, match=r"step 13: the loss is not finite.*: k96, k97, k98"):
        start(toy, tmp_path, pipe=pipe, every=every, method=toy.Toy())
    saved = torch.load(tmp_path / "last.pt")
    assert saved["step"] == 10
    assert all(tensor.isfinite().all() for tensor in saved["method"].values())


def test_the_callers_generators_are_left_alone(toy, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start(toy, tmp_path, max_steps=3)
    assert torch.equal(torch.rand(3), expected)


def test_threads_take_short_turns_while_it_trains(toy, tmp_path):
    seen, method, before = [], toy.Toy(dropout=0.5), sys.getswitchinterval()
    method.encoder.drop.register_forward_hook(lambda *_: seen.append(sys.getswitchinterval()))
    start(toy, tmp_path, method=method, max_steps=2)
    assert seen == [pytest.approx(TURN)] * 2
    assert sys.getswitchinterval() == before > TURN


def test_dropout_is_drawn_anew_at_every_step(toy, tmp_path):
    masks = []
    method = toy.Toy(dropout=0.5)
    method.encoder.drop.register_forward_hook(lambda m, i, out: masks.append(out == 0))
    start(toy, tmp_path, method=method, max_steps=4, every=Every(monitor=1000))
    assert not any(torch.equal(masks[0], mask) for mask in masks[1:])


def test_a_second_run_in_one_folder_is_refused(toy, tmp_path):
    start(toy, tmp_path, max_steps=2)
    with pytest.raises(StateError, match="holds a run already; resume it"):
        start(toy, tmp_path)
    with pytest.raises(StateError, match=r"\(train.epochs: \d there, 5 now\)"):
        start(toy, tmp_path, resume=True, train_epochs=5)
    with pytest.raises(StateError, match="there is no checkpoint"):
        start(toy, tmp_path / "elsewhere", resume=True)


def test_resuming_a_finished_run_does_nothing(toy, tmp_path):
    whole, _ = start(toy, tmp_path)
    again, result = start(toy, tmp_path, resume=True)
    assert result.steps == 20
    assert same(again, whole)


def test_resuming_another_method_is_refused(toy, tmp_path):
    start(toy, tmp_path, max_steps=2)
    other = toy.Toy(norm=False)
    with pytest.raises(StateError, match="does not fit this method"):
        start(toy, tmp_path, method=other, resume=True)


def test_too_few_batches_for_one_step(toy, tmp_path):
    with pytest.raises(SslpipeError, match="4 epochs of 5 batches are less than one step of 21"):
        start(toy, tmp_path, train_accumulate=21)


def test_a_rank_outside_a_process_group(toy, tmp_path):
    pipe = toy.Pipe(toy.recipe(), rank=1, world_size=2)
    with pytest.raises(SslpipeError, match="rank 1 of 2, but there is no process group"):
        start(toy, tmp_path, pipe=pipe)


def test_learning_rate_scales_with_batch_and_accumulation(toy, tmp_path):
    _, result = start(toy, tmp_path, train_accumulate=2, train_lr_batch=32, max_steps=2)
    assert result.metrics["lr"] == pytest.approx(1e-2 * 8 * 2 / 32)


def test_a_user_interrupting_twice_is_not_held_up(toy, tmp_path):
    class Impatient(Silent):
        def step(self, step):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        start(toy, tmp_path, progress=Impatient())


def test_a_signal_that_is_ignored_stays_ignored(toy, tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    result = start(toy, tmp_path, progress=toy.KillAt(3, signal.SIGINT))[1]
    assert result.steps == 20


def test_frozen_parts_of_the_encoder_stay_frozen_under_monitors(toy, tmp_path):
    method = toy.Toy(norm=True)
    modes = []

    def freeze(module, inputs):
        module.encoder.norm.eval()

    method.register_forward_pre_hook(freeze)
    method.head.register_forward_hook(lambda *_: modes.append(method.encoder.norm.training))
    start(toy, tmp_path, method=method, every=Every(log=1, monitor=1), max_steps=3)
    assert modes == [False] * 3
    assert torch.equal(method.encoder.norm.running_mean, torch.zeros(6))
    assert isinstance(method.encoder.norm, nn.BatchNorm1d)
