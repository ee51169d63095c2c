"""What SimMIM, BEiT, I-JEPA and MAE share: decayed mask tokens, and one convention of spreads."""

import pytest
import torch

from sslpipe.methods import build_method
from sslpipe.recipe.names import Entry
from sslpipe.train.optimizers import build_optimizer
from tests.methods import masked


def build(name, size=4):
    entry = Entry(name, masked.SETTINGS[name], "r.yaml:7")
    return build_method(entry, masked.vit(), masked.spec_of(size)).eval()


@pytest.mark.parametrize("name", ["simmim", "beit", "ijepa"])
def test_mask_tokens_are_decayed_as_officially(name):
    method = build(name)
    entry = Entry("adamw", {"lr": 1e-3, "weight_decay": 0.05}, "r.yaml:9")
    groups = build_optimizer(entry, method, scale=1.0).param_groups
    (token,) = (p for n, p in method.named_parameters() if "mask_token" in n)
    (decay,) = (g["weight_decay"] for g in groups if any(p is token for p in g["params"]))
    assert decay == 0.05
    assert token.shape[:2] == (1, 1)


@pytest.mark.parametrize(
    ("name", "metric"), [("simmim", "prediction_std"), ("ijepa", "target_std")]
)
def test_spreads_divide_by_one_less_than_the_images(name, metric):
    method, batch, seen = build(name), masked.batch_of(), []
    if name == "simmim":
        method.decoder.register_forward_hook(lambda _, __, output: seen.append(output))
    else:
        whole = method.teacher.tokens(batch.views["global"][0])[:, 1:]
        seen.append(torch.nn.functional.layer_norm(whole, whole.shape[-1:]))
    found = method(batch).metrics[metric]
    torch.testing.assert_close(found, seen[0].detach().std(0, correction=1).mean())
