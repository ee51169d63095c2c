"""The encoder in the docstring of sslpipe.encoders, as a recipe would name it."""

import re
import sys

import pytest
import torch

from sslpipe import encoders, methods
from sslpipe.errors import ContractError, RecipeError
from sslpipe.recipe.names import Entry
from tests.view_specs import square

from ..methods.conftest import fake


@pytest.fixture
def package(monkeypatch, tmp_path):
    """The example as the module my_encoders."""
    (example,) = re.findall(r"```python\n(.*?)```", encoders.__doc__, re.DOTALL)
    assert example.count("\n") <= 20
    (tmp_path / "my_encoders.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_encoders"
    sys.modules.pop("my_encoders", None)


def test_the_example_serves_methods_of_views_and_of_maps(package):
    entry = Entry(f"{package}:PatchMeans", {"dim": 6, "patch_size": 4}, "r.yaml:7")
    batch, spec = fake({"global": torch.randn(2, 4, 3, 8, 8)})
    for name, settings in (("simclr", {"projector": [8]}), ("autoencoder", {"hidden": 4})):
        encoder = encoders.build_encoder(entry, square(8))
        assert isinstance(encoder, encoders.Encoder)
        assert encoder(batch.views["global"][0]).shape == (4, 6)
        loss = methods.build_method(Entry(name, settings), encoder, spec)(batch).loss
        loss.backward()
        assert encoder.embed.weight.grad.abs().sum() > 0


def test_views_of_the_example_are_whole_patches(package):
    encoder = encoders.build_encoder(Entry(f"{package}:PatchMeans", {"dim": 6}), square(8))
    _, spec = fake({"global": torch.randn(2, 4, 3, 12, 12)})
    with pytest.raises(ContractError, match="12 x 12 px are no whole patches of 8 px"):
        methods.build_method(Entry("dino"), encoder, spec)


def test_what_does_not_say_its_features_is_named_at_once(monkeypatch, tmp_path):
    (tmp_path / "no_dim.py").write_text(
        "from torch import nn\n\n\ndef flat(view):\n    return nn.Flatten()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"r\.yaml:7: no_dim:flat made a Flatten.*set dim"):
        encoders.build_encoder(Entry("no_dim:flat", {}, "r.yaml:7"), square(8))
