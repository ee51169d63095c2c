"""From the train section of a recipe to the rates of its steps."""

import pytest
from torch import nn

from sslpipe.errors import RecipeError
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.names import Entry
from sslpipe.recipe.sections import recipe_text
from sslpipe.train.optimizers import build_optimizer
from sslpipe.train.run import lr_scale, plan_of

TEXT = """
stream: {batch_size: 4096}
views: {global: {ops: [Normalize]}}
train: {backbone: resnet18, epochs: 10, optimizer: {sgd: {lr: 0.1}}}
"""


def recipe(*overrides):
    return parse_recipe(TEXT, path="r.yaml", overrides=[f"train.{o}" for o in overrides])


def settings(*overrides):
    return recipe(*overrides).train


def plan(*overrides, scale=1.0, length=4):
    optimizer = build_optimizer(Entry("sgd", {"lr": 0.1}), nn.Linear(2, 2), scale=scale)
    return plan_of(settings(*overrides), length, optimizer)


def test_linear_and_root_rules():
    assert lr_scale(settings("accumulate=2"), 4096) == 32
    assert lr_scale(settings("lr_batch=512"), 2048) == 4  # SimMIM
    assert lr_scale(settings("lr_batch=1024", "lr_rule=sqrt"), 2048) == 2**0.5  # DINOv2
    assert lr_scale(settings("lr_batch=1", "lr_rule=sqrt"), 4096) == 64  # SimCLR's option


def test_a_ratio_is_of_the_scaled_peak_and_a_final_lr_is_absolute():
    assert plan("final_lr_ratio=0.001", scale=16).final_lr == pytest.approx(1.6e-3)
    assert plan("final_lr=0.001", scale=16).final_lr == 0.001


def test_the_warmup_starts_where_it_is_said():
    made = plan("warmup_lr=0.03", "warmup_epochs=2")
    assert [made.lr_at(0), made.lr_at(7), made.lr_at(8)] == pytest.approx([0.03, 0.1, 0.1])


def test_a_warmup_of_the_whole_run_ends_with_the_peak():
    """10 epochs of 3 batches by 4 are 7.5 steps, of which the run takes 7."""
    made = plan("warmup_epochs=10", "accumulate=4", length=3)
    assert (made.total, made.lr_at(6)) == (7, pytest.approx(0.1))


def test_a_recipe_stretches_its_cosines():
    made = plan("schedule_stretch=1.25", "final_weight_decay=0.4")
    assert (made.stretch, plan().stretch) == (1.25, 1.0)
    assert made.lr_at(25) == pytest.approx(0.05)  # the middle of 50 steps, of which 40 are run


def test_milestones_of_a_recipe_are_its_epochs():
    made = plan("schedule=multistep", "milestones=[6, 8]", "accumulate=2")
    assert made.total == 20
    assert [made.lr_at(step) for step in (11, 12, 15, 16)] == pytest.approx([0.1, 0.01, 0.01, 1e-3])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=multistep"], "r.yaml:4: train.milestones = .*multistep needs milestones"),
        (["milestones=[5]"], "train.milestones=.*multistep needs milestones, and only it has"),
        (["schedule=multistep", "milestones=[8, 6]"], "must rise and lie before train.epochs = 10"),
        (
            ["schedule=multistep", "milestones=[6, 10]"],
            "must rise and lie before train.epochs = 10",
        ),
        (["final_lr=1e-4", "final_lr_ratio=0.1"], "one of final_lr and final_lr_ratio is enough"),
        (["schedule=multistep", "milestones=[5]", "final_lr=0.1"], "train.final_lr=.* is for cos"),
        (
            ["warmup_epochs=11"],
            "train.warmup_epochs=.* = 11: .*must not be longer than train.epochs = 10",
        ),
        (
            ["epochs=2", "warmup_epochs=2.5"],
            "warmup_epochs = 2.5: must not be longer than train.epochs = 2; set it too$",
        ),
        (
            ["schedule=cosin"],
            "train.schedule=.*'cosine', 'cosine_per_epoch', 'linear' or 'multistep'",
        ),
        (["lr_rule=cubic"], "train.lr_rule = 'cubic'"),
        (["gamma=1.5"], "train.gamma = 1.5"),
        (["schedule_stretch=0.8"], "train.schedule_stretch = 0.8"),
    ],
)
def test_settings_that_do_not_go_together(overrides, message):
    with pytest.raises(RecipeError, match=message):
        settings(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [[], ["schedule=multistep", "milestones=[6, 8]"], ["final_lr_ratio=0.1"], ["final_lr=1e-3"]],
)
def test_what_a_checkpoint_keeps_parses_to_the_same_run(overrides):
    made = recipe(*overrides)
    assert parse_recipe(recipe_text(made)).fingerprint == made.fingerprint
