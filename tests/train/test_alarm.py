"""Toys that collapse are told so within three epochs; those that do not are left alone.

test_collapse.py has the real methods.

What short healthy runs showed (CIFAR-10, 10,000 images, batch 128, narrow backbones, from step 10
on, in the first epoch), against the thresholds of alarm.py:

    simclr    rank of features 3.3 to 22, embedding_std .087 to .088 (1/sqrt(128) = .088),
              loss 5.15 to 4.9 (chance 5.54)
    dino      rank 10.6 to 12.6, mean_entropy 7.8 to 8.1, teacher_entropy 7.0 to 7.6; its loss, 8.0
              to 8.1, is near ln(4096) = 8.32 for long, so it has no chance_loss
    mae       rank 5.1 to 8.0, feature_std .056 falling to .033, prediction_std .22 to .41
    rotation  rank 19 to 34
    simclr again, 25 epochs as in the head of simclr_cifar.yaml: rank 40 to 59, loss 5.7 to 5.1
              (chance 6.24)
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslpipe.encoders.monitors import embedding_std
from sslpipe.methods import METHODS, Method, Output
from sslpipe.methods.parts.collapse import embeddings_alike
from sslpipe.methods.simclr import nt_xent
from sslpipe.train import Every, Silent, train
from sslpipe.train.alarm import Alarm

LENGTH = 15  # batches per epoch


class Encoder(nn.Module):
    dim = 16

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, images):
        return self.layers(images.flatten(1))


class TwoViews(Method):
    """Two noisy views of each image, a linear projector, a loss of the embeddings."""

    collapse_signs = (embeddings_alike,)

    def __init__(self, loss, *, norm=False, chance_loss=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = Encoder()
            last = nn.BatchNorm1d(16, affine=False) if norm else nn.Identity()
            self.projector = nn.Sequential(nn.Linear(16, 16), last)
            self.predictor = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))
        self.loss, self.chance_loss = loss, chance_loss

    def forward(self, batch):
        images = batch.views["global"][0]
        a, b = (self.view(images) for _ in range(2))
        loss = self.loss(self, a, b) + 0.0 * self.predictor(a).sum()
        return Output(loss, {"embedding_std": embedding_std(a.detach())})

    def view(self, images):
        return self.projector(self.encoder(images + 0.7 * torch.randn_like(images)))

    def after_step(self, progress):
        pass


def byol(method, a, b, *, stop=torch.Tensor.detach):
    """The target is the online network itself (momentum 0), without or with its gradient."""
    return -F.cosine_similarity(method.predictor(a), stop(b)).mean()


def byol_without_stop_gradient(method, a, b):
    return byol(method, a, b, stop=lambda z: z)


def simsiam_without_predictor(method, a, b):
    return -F.cosine_similarity(a, b.detach()).mean()


def vicreg(method, a, b, *, invariance=25.0, variance=25.0):
    std = torch.cat([a.var(0), b.var(0)]).add(1e-4).sqrt()
    return invariance * F.mse_loss(a, b) + variance * F.relu(1 - std).mean()


def vicreg_without_variance(method, a, b):
    return vicreg(method, a, b, invariance=100.0, variance=0.0)


def simclr(method, a, b, *, temperature=0.2):
    return nt_xent(a, b, temperature=temperature)


def simclr_at_temperature_10(method, a, b):
    return nt_xent(a, b, temperature=10.0)


class Told(Silent):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def run(toy, out, method, name, *, epochs=3, **options):
    text = toy.RECIPE.replace("batch_size: 8", "batch_size: 32")
    text = text.replace("method: toy", f"method: {name}")
    method.collapse_causes = METHODS[name].collapse_causes
    recipe = toy.recipe(text, epochs=epochs, warmup_epochs=0.5, lr_batch=32)
    told = Told()
    result = train(
        toy.Pipe(recipe, length=LENGTH), method, recipe.train, out=out, progress=told,
        every=Every(log=5), **options,
    )  # fmt: skip
    assert list(result.alarms) == [m for m in told.messages if "Usual causes" in m]
    return result


@pytest.mark.parametrize(
    ("name", "loss", "said"),
    [
        ("byol", byol_without_stop_gradient, "no stop-gradient"),
        ("simsiam", simsiam_without_predictor, "no predictor"),
        ("vicreg", vicreg_without_variance, "an invariance term that outweighs"),
    ],
)
def test_a_collapse_is_told_within_three_epochs(toy, tmp_path, name, loss, said):
    result = run(toy, tmp_path, TwoViews(loss), name)
    assert any("embedding_std = " in message for message in result.alarms)
    assert all(said in message for message in result.alarms)


def test_a_loss_that_stays_at_chance_is_told(toy, tmp_path):
    method = TwoViews(simclr_at_temperature_10, norm=True, chance_loss=math.log(63))
    (message,) = run(toy, tmp_path, method, "simclr").alarms
    assert "the loss stays at chance" in message
    assert "a temperature that is too high" in message


@pytest.mark.parametrize("loss", [byol, vicreg, simclr])
def test_healthy_runs_are_left_alone(toy, tmp_path, loss):
    method = TwoViews(loss, norm=True, chance_loss=math.log(63) if loss is simclr else None)
    assert run(toy, tmp_path, method, loss.__name__).alarms == ()


@pytest.mark.parametrize(("stop", "before", "after"), [(20, 0, 1), (45, 1, 0)])
def test_a_run_that_is_resumed_knows_what_went_before(toy, tmp_path, stop, before, after):
    name, loss = "vicreg", vicreg_without_variance
    first = run(toy, tmp_path, TwoViews(loss), name, epochs=5, max_steps=stop)
    second = run(toy, tmp_path, TwoViews(loss), name, epochs=5, resume=True)
    assert (len(first.alarms), len(second.alarms)) == (before, after)


class AllSigns(Method):
    """Nothing but the signs of all methods."""

    collapse_signs = tuple({w: None for m in METHODS.values() for w in m.collapse_signs})

    def forward(self, batch):
        raise NotImplementedError


def alarm(chance_loss=None, warmup_epochs=1):
    method = AllSigns()
    method.chance_loss = chance_loss
    return Alarm(method, warmup_epochs=warmup_epochs)


def told(alarm, rows, epochs=0.5):
    """How many messages each row makes; `epochs` between rows."""
    rows = [{"epoch": epochs * i, "loss": 1.0, **row} for i, row in enumerate(rows)]
    return [len(alarm.read(row)) for row in rows]


@pytest.mark.parametrize(
    ("name", "healthy", "collapsed"),
    [
        ("feature_rankme", 3.0, 1.2),
        ("mean_entropy", 2.0, 0.01),
        ("feature_std", 0.05, 0.005),
        ("embedding_std", 0.09, 0.01),
        ("prediction_std", 0.4, 0.05),
        ("embedding_rank", 1.6, 1.2),
        ("agreement", 0.95, 0.985),
        ("variance", 0.77, 0.95),
    ],
)
def test_each_sign_must_show_twice_in_a_row_and_is_said_again_after_it_went(
    name, healthy, collapsed
):
    values = [healthy, collapsed, healthy, collapsed, collapsed, collapsed, healthy]
    values += [collapsed, collapsed]
    assert told(alarm(), [{name: v} for v in values]) == [0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_sign_that_flickers_is_told_once_until_it_was_gone_for_an_epoch():
    values = [0.005, 0.005, 0.02] * 4 + [0.02] * 10 + [0.005, 0.005]
    rows = [{"mean_entropy": 8.0 + v, "teacher_entropy": 8.0} for v in values]
    assert [i for i, n in enumerate(told(alarm(), rows, epochs=0.1)) if n] == [1, 23]


def test_embeddings_that_never_spread_are_seen_too():
    assert told(alarm(), [{"embedding_std": 5e-4}] * 3) == [0, 1, 0]


def test_rows_without_a_monitor_neither_confirm_nor_deny():
    rows = [{"feature_rankme": 1.1}, {}, {"feature_rankme": 1.1}]
    assert told(alarm(), rows) == [0, 0, 1]


def test_a_teacher_whose_outputs_are_all_alike_is_told_however_flat_they_are():
    rows = [{"mean_entropy": 8.3, "teacher_entropy": h} for h in (7.0, 8.295, 8.296, 8.3)]
    assert told(alarm(), rows) == [0, 0, 1, 0]


def test_what_is_not_finite_is_not_judged():
    rows = [{"feature_std": v} for v in (0.1, None, math.nan, 0.01, 0.01)]
    assert told(alarm(), rows) == [0, 0, 0, 0, 1]


def test_chance_is_allowed_for_the_warmup_and_an_epoch_more():
    rows = [{"loss": 2.0}] * 7
    assert told(alarm(chance_loss=2.0), rows) == [0, 0, 0, 0, 0, 1, 0]  # epochs 0, 0.5, 1 ...
    assert told(alarm(chance_loss=2.1), rows) == [0] * 7


def test_a_single_loss_off_chance_does_not_hide_that_it_stays_there():
    rows = [{"loss": 1.99}] * 4 + [{"loss": 1.94}] + [{"loss": 1.99}] * 3
    assert sum(told(alarm(chance_loss=2.0), rows)) == 1


def test_causes_are_those_of_the_family_or_of_any_method():
    said = {name: method.collapse_causes for name, method in METHODS.items()}
    assert said["moco_v3"] == said["simclr"] != said["byol"] == said["simsiam"]
    assert said["rotation"] == Method.collapse_causes
    assert all("learning rate" in causes for causes in said.values())


def test_a_sign_belongs_to_the_methods_that_have_it():
    """A user's metric may be called `variance` and mean something else."""
    method = TwoViews(vicreg)
    rows = [{"variance": 0.99, "embedding_std": 1e-4}] * 2
    assert told(Alarm(method, warmup_epochs=1), rows) == [0, 1]
