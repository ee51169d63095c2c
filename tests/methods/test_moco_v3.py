import copy
import math

import pytest
import torch
from torch import nn

from sslpipe.encoders import build_encoder
from sslpipe.errors import ContractError
from sslpipe.methods import moco_v3
from sslpipe.methods.parts import teachers
from sslpipe.recipe.names import Entry
from tests.view_specs import square

SMALL = {"projector": (12, 12, 5), "predictor_hidden": 9, "freeze_patches": False}


def slow_loss(q, k, temperature):
    """Chen et al. 2021, algorithm 1, `ctr`, with loops."""
    losses = []
    for i, one in enumerate(q):
        logits = [float(one @ other / one.norm() / other.norm()) / temperature for other in k]
        losses.append(math.log(sum(math.exp(x) for x in logits)) - logits[i])
    return 2 * temperature * sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_loss_is_algorithm_1(rand, temperature):
    q, k = rand(5, 4), rand(5, 4)
    loss = moco_v3.moco_v3_loss(q, k, temperature=temperature)
    assert loss.item() == pytest.approx(slow_loss(q, k, temperature), abs=1e-9)
    scaled = moco_v3.moco_v3_loss(q * 3.0, k * 0.1, temperature=temperature)
    torch.testing.assert_close(scaled, loss)


def test_equal_embeddings_cost_the_log_of_the_batch_and_keys_take_no_gradient(rand):
    q = rand(1, 4).expand(6, 4)
    loss = moco_v3.moco_v3_loss(q, q, temperature=0.2)
    assert loss.item() == pytest.approx(0.4 * math.log(6))
    q, k = rand(4, 4).requires_grad_(), rand(4, 4).requires_grad_()
    moco_v3.moco_v3_loss(q, k, temperature=0.2).backward()
    assert k.grad is None
    assert q.grad.abs().sum() > 0


def test_each_query_meets_the_other_views_key(encoder, views):
    batch, spec = views
    method = moco_v3.MoCoV3(encoder, spec, **SMALL, temperature=0.5)
    reference = copy.deepcopy(method)
    x1, x2 = batch.views["global"]
    q1, q2 = (reference.predictor(reference.online(x)) for x in (x1, x2))
    k1, k2 = (reference.target(x) for x in (x1, x2))
    expected = sum(moco_v3.moco_v3_loss(q, k, temperature=0.5) for q, k in ((q1, k2), (q2, k1)))
    torch.testing.assert_close(method(batch).loss, expected)
    assert encoder.calls == [(4, 3, 8, 8)] * 2  # view by view
    assert method.chance_loss == pytest.approx(2 * 2 * 0.5 * math.log(4))


def test_the_targets_momentum_rises_to_one(encoder, views):
    method = moco_v3.MoCoV3(encoder, views[1], **SMALL, momentum=0.9)
    old = copy.deepcopy(method.target.state_dict())
    for parameter in method.online.parameters():
        parameter.data.add_(1.0)
    method.after_step(0.25)
    m = teachers.cosine_between(0.9, 1.0, 0.25)
    for (name, slow), fast in zip(
        method.target.named_parameters(), method.online.parameters(), strict=True
    ):
        torch.testing.assert_close(slow.data, m * old[name] + (1 - m) * fast.data)
    held = copy.deepcopy(method.target.state_dict())
    method.after_step(1.0)
    torch.testing.assert_close(dict(method.target.state_dict()), dict(held), rtol=0, atol=0)


@pytest.mark.parametrize("vit", [True, False])
def test_heads_are_the_official_ones(encoder, views, vit):
    projector = (12, 12, 5) if vit else (12, 5)
    settings = SMALL | {"projector": projector, "predictor_norm": vit}
    method = moco_v3.MoCoV3(encoder, views[1], **settings)
    block = ["Linear", "BatchNorm1d", "ReLU"]
    kinds = [type(part).__name__ for part in method.online[1]]
    assert kinds == block * (len(projector) - 1) + ["Linear", "BatchNorm1d"]
    assert not method.online[1][-1].affine
    last = ["BatchNorm1d"] if vit else []
    assert [type(part).__name__ for part in method.predictor] == [*block, "Linear", *last]
    assert method.predictor[0].weight.shape == (9, 5)
    assert method.predictor[3].weight.shape == (5, 9)
    linears = [part for part in method.modules() if isinstance(part, nn.Linear)]
    assert all(part.bias is None for part in linears if part not in (encoder.linear,
               method.target[0].linear))  # fmt: skip


def test_the_patch_projection_is_random_frozen_and_shared_with_the_target(views):
    vit = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "pos_embed": "sincos"}
    encoder = build_encoder(Entry("vit_tiny", vit), square(8))
    batch, spec = views
    method = moco_v3.MoCoV3(encoder, spec, **SMALL | {"freeze_patches": True})
    proj = method.encoder.model.patch_embed.proj
    bound = math.sqrt(6 / (3 * 4 * 4 + 24))
    assert 0.95 * bound < proj.weight.abs().max() <= bound
    assert proj.bias.abs().sum() == 0
    method(batch).loss.backward()
    assert proj.weight.grad is None
    assert proj.weight.equal(method.target[0].model.patch_embed.proj.weight)
    assert not method.encoder.model.pos_embed.requires_grad
    assert all(p.grad is not None for p in method.online.parameters() if p.requires_grad)


def test_an_encoder_without_patches_cannot_freeze_them(encoder, views):
    with pytest.raises(ContractError, match=r"freeze_patches to false"):
        moco_v3.MoCoV3(encoder, views[1], **SMALL | {"freeze_patches": True})
