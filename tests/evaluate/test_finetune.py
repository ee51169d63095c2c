"""Fine-tuning against the papers' values and timm's layers; parts, draws, and a killed run."""

import copy
from dataclasses import replace

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from sslpipe.encoders.image import cifar_resnet
from sslpipe.errors import SslpipeError
from sslpipe.evaluate import fitting
from sslpipe.evaluate.finetune import (
    classifier_of,
    examples,
    finetune,
    optimizer_of,
    stream_recipe,
)
from sslpipe.evaluate.finetune_settings import (
    BEIT_BASE,
    MAE_BASE,
    MAE_LARGE,
    RESNET,
    SIMCLR_1,
    SIMCLR_10,
    SWAV_1,
    SWAV_10,
    convolutional,
    transformer,
)
from sslpipe.evaluate.fitting import course_of
from sslpipe.evaluate.labelled_streams import list_labelled, share_of_labels, split_of
from sslpipe.evaluate.subsets import mean_of_draws
from sslpipe.train.run import lr_scale
from sslpipe.train.world import keyed

from ..view_specs import square
from .killed import whole_and_resumed
from .toy_sets import Means, small_vit, subject

CPU = torch.device("cpu")
QUICK_VIT = replace(MAE_BASE, train=transformer(lr=0.1, layer_decay=0.8, epochs=8, warmup=1))


def course(settings, samples=1_281_167, **changed):
    given = {"epochs": None, "batch_size": None} | changed
    return course_of(settings.train, settings.batch_size, samples=samples, **given)


OFFICIAL = [  # batch, lr of it, layer decay, epochs, warm-up, drop path
    (MAE_BASE, 1024, 2e-3, 0.65, 100, 5, 0.1),
    (MAE_LARGE, 1024, 4e-3, 0.75, 50, 5, 0.2),
    (BEIT_BASE, 1024, 4e-3, 0.65, 100, 20, 0.1),
]


@pytest.mark.parametrize("values", OFFICIAL, ids=lambda v: v[0].name)
def test_the_settings_of_transformers_are_the_official_ones(values):
    settings, batch, lr, decay, epochs, warmup, drop_path = values
    planned = course(settings)
    given = planned.train.optimizer.settings
    assert planned.train.optimizer.name == "adamw"
    assert planned.batch == batch
    assert given["lr"] * lr_scale(planned.train, planned.part) == pytest.approx(lr)
    assert (given["layer_decay"], given["weight_decay"]) == (decay, 0.05)
    assert given["betas"] == (0.9, 0.999)
    train = planned.train
    assert (train.epochs, train.warmup_epochs, train.final_lr) == (epochs, warmup, 1e-6)
    assert (settings.drop_path, settings.smoothing, settings.erase) == (drop_path, 0.1, 0.25)
    assert (settings.mixing.mixup, settings.mixing.cutmix, settings.mixing.switch) == (0.8, 1, 0.5)
    assert settings.mean_patches
    assert planned.said == "official"


CONVOLUTIONAL = [  # batch, lr of it, of the head, epochs, milestones, share of the labels
    (RESNET, 256, 0.05, 0.05, 100, (), 1.0),
    (SIMCLR_1, 4096, 0.8, 0.8, 60, (), 0.01),
    (SIMCLR_10, 4096, 0.8, 0.8, 30, (), 0.1),
    (SWAV_1, 256, 0.02, 5.0, 20, (12, 16), 0.01),
    (SWAV_10, 256, 0.01, 0.2, 20, (12, 16), 0.1),
]


@pytest.mark.parametrize("values", CONVOLUTIONAL, ids=lambda v: v[0].name)
def test_the_settings_of_resnets_are_the_official_ones(values, colours):
    settings, batch, lr, head_lr, epochs, milestones, fraction = values
    planned = course(settings)
    train = planned.train
    assert (planned.batch, train.epochs, train.milestones) == (batch, epochs, milestones)
    assert (train.warmup_epochs, train.optimizer.settings["weight_decay"]) == (0, 0.0)
    assert train.optimizer.settings.get("nesterov", False) == settings.name.startswith("SimCLR")
    assert settings.fraction == fraction
    assert not milestones or train.gamma == 0.2
    split = split_of(*colours, seed=0)
    model = classifier_of(subject(Means()), split, settings, CPU, seed=0)
    optimizer = optimizer_of(model, settings, planned)
    rates = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    peak = optimizer.defaults["lr"]
    for p in model.encoder.parameters():
        assert peak * rates[id(p)] == pytest.approx(lr)
    for p in model.head.parameters():
        assert peak * rates[id(p)] == pytest.approx(head_lr)


def test_rates_and_decay_of_layers_are_timms(colours):
    toy = subject(small_vit())
    model = classifier_of(toy, split_of(*colours, seed=0), MAE_BASE, CPU, seed=0)
    optimizer = optimizer_of(model, MAE_BASE, course(MAE_BASE))
    whole = small_vit().model
    whole.reset_classifier(3)
    groups = param_groups_layer_decay(
        whole, weight_decay=0.05, no_weight_decay_list=whole.no_weight_decay(), layer_decay=0.65
    )
    timms = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    ours = {
        id(p): (g["lr_scale"], g["weight_decay"])
        for g in optimizer.param_groups
        for p in g["params"]
    }
    named = dict(whole.named_parameters())
    names = [name for name, _ in model.encoder.model.named_parameters()]
    assert set(named) - set(names) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    for name, p in model.encoder.model.named_parameters():
        assert ours[id(p)] == pytest.approx(timms[id(named[name])]), name
    assert ours[id(model.head.weight)] == timms[id(whole.head.weight)] == (1.0, 0.05)
    assert ours[id(model.norm.weight)] == (1.0, 0.0)


def test_the_model_of_mae_has_drop_path_a_fresh_norm_and_the_mean_of_patches(colours):
    toy = subject(small_vit())
    before = copy.deepcopy(toy.encoder.state_dict())
    model = classifier_of(toy, split_of(*colours, seed=0), MAE_BASE, CPU, seed=0)
    rates = [block.drop_path1.drop_prob for block in model.encoder.model.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1])
    assert model.norm.eps == 1e-6
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.3)
    images, inner = torch.rand(4, 3, 16, 16), []
    hook = toy.encoder.model.norm.register_forward_pre_hook(lambda _, given: inner.append(given[0]))
    toy.encoder.eval()(images)
    hook.remove()
    expected = model.head(nn.LayerNorm(16, eps=1e-6)(inner[0][:, 1:].mean(1)))
    torch.testing.assert_close(model.eval()(images), expected)
    assert all(torch.equal(before[k], v) for k, v in toy.encoder.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_vits_learn_with_all_that_mae_does(colours):
    state = torch.random.get_rng_state()
    toy = subject(small_vit())
    before = copy.deepcopy(toy.encoder.state_dict())
    (measure,) = finetune(toy, *colours, QUICK_VIT, device="cpu", batch_size=15)
    assert measure.value > 0.8
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in toy.encoder.state_dict().items())
    for part in (
        "fine-tuning by MAE ViT-B, official but 15 of 1024 samples a batch",
        "ADAMW of lr 0.1 x 15/256, 1 epochs of warm-up, cosine to 1e-06, 8 epochs",
        "layer decay 0.8, drop path 0.1, mixup 0.8 and cutmix 1 a sample, smoothing 0.1",
        "colour jitter 0.4 for RandAugment, erasing 0.25",
        "90 labels; last epoch, 30 test samples (test set), 3 classes",
    ):
        assert part in measure.protocol, part


def narrow_resnet():
    with keyed("test", seed=2):
        return cifar_resnet("cifar_resnet", square(16), width=4, blocks=(1, 1, 1, 1))


def test_resnets_learn_on_few_labels_with_an_interval(colours):
    quick = replace(
        RESNET, train=convolutional(lr=1.0, epochs=8), fraction=0.5, draws=2, name="half"
    )
    (measure,) = finetune(subject(narrow_resnet()), *colours, quick, device="cpu", batch_size=15)
    assert measure.value > 0.7
    assert measure.interval is not None
    assert "45 labels (50%, balanced, keyed by uid, mean of 2 draws)" in measure.protocol


def test_the_interval_is_students():
    assert mean_of_draws([0.7]) == (0.7, None)
    mean, half = mean_of_draws([0.1, 0.2, 0.3, 0.4, 0.5])
    assert mean == pytest.approx(0.3)
    assert half == pytest.approx(2.776 * 0.15811 / 5**0.5, rel=1e-3)


def test_few_labels_are_balanced_and_draws_differ(colours):
    samples = list_labelled(colours[0])
    draws = [share_of_labels(samples, 0.1, seed=seed) for seed in (0, 0, 1)]
    assert [d.labels.bincount().tolist() for d in draws] == [[3, 3, 3]] * 3
    one, again, other = (set(d.uids.tolist()) for d in draws)
    assert one == again != other
    assert share_of_labels(samples, 1e-6, seed=0).labels.tolist().count(0) == 1


def test_a_killed_run_goes_on_to_the_same_weights(colours, tmp_path, monkeypatch):
    def run(state):
        finetune(
            subject(small_vit()), *colours, QUICK_VIT,
            device="cpu", epochs=2, batch_size=40, state=state,
        )  # fmt: skip

    whole, resumed = whole_and_resumed(run, tmp_path, monkeypatch, epoch=2)
    assert resumed["step"] == whole["step"] == 4
    assert all(torch.equal(whole["module"][k], v) for k, v in resumed["module"].items())


def test_parts_of_a_batch_add_up_to_it(colours, tmp_path, monkeypatch):
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            with keyed("test", seed=0):
                self.layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.GELU())

        def forward(self, images):
            return self.layers(images)

    weights = []
    for part in (30, 90):  # a step is an epoch: the same samples and views in both
        monkeypatch.setattr(fitting, "PART", part)
        state = tmp_path / f"{part}"
        finetune(
            subject(Layers()), *colours, RESNET,
            device="cpu", epochs=3, batch_size=90, state=state,
        )  # fmt: skip
        weights.append(torch.load(state, weights_only=True)["module"])
    start = Layers().layers[1].weight
    assert not torch.allclose(start, weights[1]["encoder.layers.1.weight"], atol=1e-5)
    for name, whole in weights[1].items():
        torch.testing.assert_close(weights[0][name], whole)


def test_examples_are_those_of_the_stream_mixed(colours):
    import sslpipe

    recipe = stream_recipe(subject(small_vit()).recipe, MAE_BASE, part=30, seed=0)
    names = [op.name for op in recipe.views["global"].ops]
    assert names == [
        "RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "Normalize", "RandomErasing",
    ]  # fmt: skip
    with sslpipe.load(recipe, shards=colours[0], device="cpu") as pipe:
        batch = next(iter(pipe))
    images, targets = examples(batch, MAE_BASE, classes=3, seed=0)
    plain = batch.views["global"][0]
    assert images.shape == plain.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(30))
    changed = (images != plain).flatten(1).any(1)
    assert 20 < changed.sum() < 31
    unmixed, hard = examples(batch, RESNET, classes=3, seed=0)
    assert torch.equal(unmixed, plain)
    assert torch.equal(hard.argmax(1), batch.labels)
    assert hard.max() == 1


def test_settings_of_transformers_are_for_them(colours):
    with pytest.raises(SslpipeError, match="toy: is a TimmModel, and fine-tuning by MAE ViT-B"):
        finetune(subject(narrow_resnet()), *colours, MAE_BASE, device="cpu")
