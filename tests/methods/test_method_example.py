"""The method in the docstring of methods/method.py takes a step, as a recipe would name it."""

import re
import sys

import pytest
import torch
from torch import nn

from sslpipe import methods
from sslpipe.errors import ContractError, RecipeError
from sslpipe.methods import method
from sslpipe.recipe.names import Entry
from sslpipe.train.optimizers import build_optimizer


@pytest.fixture
def example(monkeypatch, tmp_path):
    """The example as the module my_apart."""
    (text,) = re.findall(r"```python\n(.*?)```", method.__doc__, re.DOTALL)
    assert text.count("\n") <= 26
    (tmp_path / "my_apart.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_apart:Apart"
    sys.modules.pop("my_apart", None)


def test_the_example_takes_a_step(example, encoder, make_batch, rand):
    batch, spec = make_batch({"global": rand(2, 4, 3, 8, 8).float()})
    mine = methods.build_method(Entry(example, {"weight": 0.5}), encoder, spec)
    optimizer = build_optimizer(Entry("sgd", {"lr": 0.01}), mine, scale=1.0)
    methods.follow(optimizer, mine, total_steps=4)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        output = mine(batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]
    assert mine.encoder is encoder
    assert not output.metrics["short"].requires_grad


def test_what_it_does_not_define_has_defaults(example, encoder, make_batch, rand):
    _, spec = make_batch({"global": rand(2, 4, 3, 8, 8)})
    mine = methods.build_method(Entry(example), encoder, spec)
    assert mine.chance_loss is None
    assert [*mine.fixed_lr_parameters(), *mine.undecayed_parameters()] == []
    assert (*mine.clipped_together(), *mine.collapse_signs) == ()
    assert mine.after_step(1.0) is None


def test_its_contract_is_checked_when_it_is_built(example, encoder, make_batch, rand):
    _, spec = make_batch({"global": rand(1, 4, 3, 8, 8)})
    with pytest.raises(ContractError, match="apart needs 2 'global' views"):
        methods.build_method(Entry(example), encoder, spec)


def test_a_class_that_is_no_method_is_named(monkeypatch, tmp_path, encoder):
    (tmp_path / "no_method.py").write_text(
        "from torch import nn\n\n\nclass Bare(nn.Module):\n"
        "    def __init__(self, encoder, spec):\n        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"r\.yaml:7: no_method:Bare made a Bare.*derive it from"):
        methods.build_method(Entry("no_method:Bare", {}, "r.yaml:7"), encoder, None)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.zeros(()), r"returned a Tensor; return Output"),
        (methods.Output(torch.zeros(3, requires_grad=True), {}), r"returned loss as \(3,\)"),
        (methods.Output(torch.zeros(()), {}), r"returned loss without gradient"),
        (methods.Output(0.5, {}), r"returned loss as float"),
        (
            methods.Output(torch.zeros((), requires_grad=True), {"a": torch.zeros(2)}),
            r"returned a as \(2,\)",
        ),
        (
            methods.Output(
                torch.zeros((), requires_grad=True), {"a": torch.ones((), requires_grad=True)}
            ),
            r"returned a with gradient; write \.detach\(\)",
        ),
    ],
)
def test_what_forward_returns_is_checked_with_its_class(output, said):
    with pytest.raises(ContractError, match=rf"torch\.nn.*:Identity: forward\(\) {said}"):
        method.check_output(nn.Identity(), output)


def test_a_method_without_encoder_says_so():
    class Empty(methods.Method):
        def forward(self, batch):
            return methods.Output(torch.zeros(()), {})

    with pytest.raises(NotImplementedError, match=r"Empty keeps no encoder; store one as self\."):
        Empty().encoder  # noqa: B018
    one = Empty()
    one.encoder = nn.Identity()
    assert list(dict(one.named_modules())) == ["", "encoder"]
