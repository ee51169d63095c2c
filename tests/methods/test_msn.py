import copy
import math

import pytest
import torch
from torch import nn

from sslpipe.batch import MaskSpec
from sslpipe.encoders import build_encoder
from sslpipe.errors import ContractError
from sslpipe.methods import msn
from sslpipe.recipe.names import Entry
from tests.view_specs import square

SMALL = {"projector": (16, 16, 8), "prototypes": 6}
VIT = Entry("vit_tiny", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2})


def slow_msn_loss(anchors, targets, prototypes, temperature, sharpening, weight):
    """facebookresearch/msn, src/losses.py, on probabilities and with loops."""

    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    def divided(row):
        return [x / sum(row) for x in row]

    def snn(z):
        protos = [unit(p) for p in prototypes.tolist()]
        dots = [sum(x * y for x, y in zip(unit(z), p, strict=True)) for p in protos]
        return divided([math.exp(d / temperature) for d in dots])

    q = [divided([p ** (1 / sharpening) for p in snn(z)]) for z in targets.tolist()]
    for _ in range(3):
        sums = [sum(column) for column in zip(*q, strict=True)]
        q = [divided([x / s for x, s in zip(row, sums, strict=True)]) for row in q]
    p = [[snn(z) for z in view] for view in anchors.tolist()]
    terms = [
        -sum(a * math.log(b) for a, b in zip(q[i], view[i], strict=True))
        for view in p
        for i in range(len(q))
    ]
    flat = [row for view in p for row in view]
    mean = [sum(column) / len(flat) for column in zip(*flat, strict=True)]
    regulariser = math.log(len(mean)) + sum(m * math.log(m) for m in mean)
    return sum(terms) / len(terms) + weight * regulariser


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return build_encoder(VIT, square(16))


@pytest.fixture
def crops(make_batch, rand):
    """Target, anchor with 3 of 16 patches dropped, two focal views, of four images."""
    views = {"target": (1, 16), "anchor": (1, 16), "focal": (2, 8), "global": (1, 16)}
    batch, spec = make_batch(
        {name: rand(count, 4, 3, size, size).float() for name, (count, size) in views.items()},
        {"drop": rand(1, 4, 16).argsort(-1) < 3},
    )
    spec.masks["drop"] = MaskSpec("anchor", 1, "HW", (4, 4), (4, 4), 3)
    return batch, spec


@pytest.mark.parametrize("anchors", [1, 3])
def test_loss_is_equation_2_with_the_official_order(rand, anchors):
    tensors = rand(anchors, 4, 5), rand(4, 5), rand(6, 5)
    settings = {"temperature": 0.2, "sharpening": 0.25, "me_max_weight": 0.7}
    loss = msn.msn_loss(*tensors, **settings)
    assert loss.item() == pytest.approx(slow_msn_loss(*tensors, *settings.values()), abs=1e-9)
    single = msn.msn_loss(*(t.float() for t in tensors), **settings)
    assert single.item() == pytest.approx(loss.item(), abs=1e-4)


def test_prototypes_that_are_all_alike_cost_the_log_of_their_number(rand):
    alike = rand(1, 5).expand(6, 5)
    loss = msn.msn_loss(rand(2, 4, 5), rand(4, 5), alike)
    assert loss.item() == pytest.approx(math.log(6))  # and the regulariser is 0


def test_me_max_is_zero_for_even_use_and_ln_k_for_one_prototype():
    even = torch.eye(6).clamp(min=1e-12).log().view(2, 3, 6)
    assert msn.me_max(even).item() == pytest.approx(0, abs=1e-6)
    one = torch.eye(6)[:1].expand(6, 6).clamp(min=1e-30).log().view(2, 3, 6)
    assert msn.me_max(one).item() == pytest.approx(math.log(6))


def test_rescaling_embeddings_and_prototypes_changes_nothing(rand):
    anchors, targets, prototypes = rand(2, 4, 5), rand(4, 5), rand(6, 5)
    loss = msn.msn_loss(anchors, targets, prototypes)
    scaled = msn.msn_loss(anchors * 3, targets * 5, prototypes * rand(6, 1).exp())
    torch.testing.assert_close(scaled, loss)


def test_targets_take_no_gradient_and_prototypes_learn_from_anchors_alone(rand):
    anchors, targets, prototypes = (
        t.requires_grad_() for t in (rand(2, 4, 5), rand(4, 5), rand(6, 5))
    )
    msn.msn_loss(anchors, targets, prototypes).backward()
    assert targets.grad is None
    assert anchors.grad.isfinite().all()
    assert torch.autograd.gradcheck(lambda a: msn.msn_loss(a, targets, prototypes), (anchors,))
    q = msn.msn_targets(msn.log_assignments(targets, prototypes, 0.1), sharpening=0.25)
    fixed = prototypes.detach().requires_grad_()
    log_p = msn.log_assignments(anchors.detach(), fixed, 0.1)
    (-(q * log_p).sum(-1).mean() + msn.me_max(log_p)).backward()
    torch.testing.assert_close(fixed.grad, prototypes.grad)


def test_certain_targets_do_not_underflow():
    # p = e^-20, sharpened e^-80, is 0 in fp32: dividing by its sum would be nan
    prototypes = torch.cat([torch.eye(4), -torch.eye(4)])
    z = torch.eye(4)[:1].expand(3, 4)
    q = msn.msn_targets(msn.log_assignments(z, prototypes, 0.05), sharpening=0.1)
    assert q.isfinite().all()


def test_forward_drops_patches_of_the_anchor_only(encoder, crops):
    batch, spec = crops
    method = msn.MSN(encoder, spec, **SMALL)
    kept = (~batch.masks["drop"][0]).nonzero()[:, 1].view(4, 13)
    anchor = method.student.head(encoder.tokens(batch.views["anchor"][0], kept)[:, 0])
    focal = method.student.head(encoder(batch.views["focal"].flatten(0, 1)))
    target = method.teacher.head(method.encoder(batch.views["target"][0]))
    z = torch.cat([anchor, focal]).view(3, 4, 8)
    output = method(batch)
    torch.testing.assert_close(output.loss, msn.msn_loss(z, target, method.prototypes_KD))
    pixels = batch.views["anchor"].clone()
    hidden = batch.masks["drop"][0].view(4, 1, 4, 1, 4, 1).expand(4, 3, 4, 4, 4, 4)
    pixels[0][hidden.reshape(4, 3, 16, 16)] = 9.0
    changed, *_ = make(batch, anchor=pixels)
    torch.testing.assert_close(method(changed).loss, output.loss)


def make(batch, **views):
    """The batch with other views."""
    changed = copy.copy(batch)
    object.__setattr__(changed, "views", batch.views | views)
    return (changed,)


def test_backward_reaches_student_and_prototypes_and_not_the_teacher(encoder, crops):
    batch, spec = crops
    method = msn.MSN(encoder, spec, **SMALL)
    output = method(batch)
    output.loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    trained = [*method.student.parameters(), method.prototypes_KD]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert method.prototypes_KD.grad.abs().sum() > 0
    assert not any(metric.requires_grad for metric in output.metrics.values())


def test_after_step_is_the_stretched_linear_ema(encoder, crops):
    method = msn.MSN(encoder, crops[1], **SMALL, momentum=0.5)
    old = copy.deepcopy(dict(method.teacher.named_parameters()))
    for parameter in method.student.parameters():
        parameter.data.add_(1.0)
    new = dict(method.student.named_parameters())
    method.after_step(1.0)  # 4 / 5 of the way from 0.5 to 1
    for name, value in method.teacher.named_parameters():
        torch.testing.assert_close(value, 0.9 * old[name] + 0.1 * new[name])
    assert method.encoder is method.teacher.encoder


def test_head_is_the_official_one(encoder, crops):
    head = msn.MSN(encoder, crops[1]).student.head
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "GELU"] * 2 + ["Linear"]
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [
        2048,
        2048,
        256,
    ]
    assert head[3].weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_focal_views_are_optional_and_anchors_are_not(encoder, crops):
    batch, spec = crops
    del spec.views["focal"]
    assert msn.MSN(encoder, spec, **SMALL)(batch).loss.isfinite()
    del spec.views["anchor"]
    with pytest.raises(ContractError, match="msn needs 1 'anchor' views"):
        msn.MSN(encoder, spec, **SMALL)


def test_masks_must_lie_over_the_anchor_and_drop_as_much_of_every_row(encoder, crops):
    spec = crops[1]
    spec.masks["drop"] = MaskSpec("anchor", 1, "HW", (4, 4), (4, 4), None)
    with pytest.raises(
        ContractError, match=r"masks\.drop to hide the same number .* such as random"
    ):
        msn.MSN(encoder, spec, **SMALL)
    spec.masks["drop"] = MaskSpec("target", 1, "HW", (4, 4), (4, 4), 3)
    with pytest.raises(ContractError, match="msn masks 'anchor'"):
        msn.MSN(encoder, spec, **SMALL)
