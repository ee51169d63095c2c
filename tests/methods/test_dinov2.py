import math

import pytest
import torch
import torch.nn.functional as F

from sslpipe.errors import ContractError
from sslpipe.methods.dinov2 import DINOv2, koleo_loss

SMALL = {"prototypes": 12, "hidden": 16, "bottleneck": 8}


def slow_koleo(features):
    """Sablayrolles et al. 2019 with loops; eps as in koleo_loss.py."""
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features.tolist()]
    total = 0.0
    for i, a in enumerate(rows):
        nearest = min(math.dist(a, b) for j, b in enumerate(rows) if j != i)
        total -= math.log(nearest + 1e-8)
    return total / len(rows)


def official_sinkhorn(logits_XK, temperature):
    """sinkhorn_knopp_teacher of dinov2, dino_clstoken_loss.py and ibot_patch_loss.py."""
    q = (logits_XK / temperature).exp().T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True)
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= samples
    return (q * samples).T


def official_dinov2(method, batch, assign):
    """forward_backward of ssl_meta_arch.py with the method's networks, `assign` for the targets."""
    student, teacher = method.pair.student, method.pair.teacher
    crops, local = batch.views["global"].flatten(0, 1), batch.views["local"]
    masks = batch.masks["blocks"].flatten(0, 1)
    n_local, n_terms = len(local), 2 + 2 * len(local)
    whole = teacher.encoder.tokens(crops).detach()
    swapped = torch.cat(whole[:, 0].chunk(2)[::-1])
    p_cls, p_patch = assign(teacher.head(swapped)), assign(teacher.patch_head(whole[:, 1:][masks]))
    token = method.pair.mask_token_1D[0]
    tokens = student.encoder.tokens(crops, hidden_BN=masks, mask_token_D=token)
    total = 0.0
    for view in local:
        log_q = (student.head(student.encoder(view)) / 0.1).log_softmax(-1)
        total = total - sum((t * log_q).sum(-1).mean() for t in p_cls.chunk(2)) / n_terms
    log_q = (student.head(tokens[:, 0]) / 0.1).log_softmax(-1)
    total = total - (p_cls * log_q).sum(-1).mean() * 2 / n_terms
    distances = [slow_koleo(cls) for cls in tokens[:, 0].detach().chunk(2)]
    log_q = (student.patch_head(tokens[:, 1:][masks]) / 0.1).log_softmax(-1)
    weight = (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks]
    patch = -((p_patch * log_q).sum(-1) * weight).sum() / len(masks) * 2 * 0.5
    assert n_local == 3
    return total + patch + 0.1 * sum(distances)


@pytest.mark.parametrize("heads", ["shared", "separate"])
@pytest.mark.parametrize("centering", ["centering", "sinkhorn"])
def test_loss_is_that_of_the_official_code(heads, centering, vit, masked_crops):
    batch, spec = masked_crops
    method = DINOv2(vit, spec, **SMALL, heads=heads, centering=centering)
    method.pair.mask_token_1D.data.normal_()
    assign = official_sinkhorn if centering == "sinkhorn" else centre_at_zero
    expected = official_dinov2(method, batch, lambda logits: assign(logits.detach(), 0.04))
    torch.testing.assert_close(method(batch).loss, expected, atol=1e-4, rtol=1e-4)


def centre_at_zero(logits, temperature):
    return (logits / temperature).softmax(-1)


def test_koleo_is_the_log_distance_of_nearest_neighbours(rand):
    features = rand(7, 5)
    loss = koleo_loss(features)
    assert loss.item() == pytest.approx(slow_koleo(features))
    torch.testing.assert_close(koleo_loss(3.0 * features), loss)  # on the unit sphere


def test_koleo_pushes_neighbours_apart_and_stays_finite_for_duplicates(rand):
    features = rand(6, 4).requires_grad_()
    before = koleo_loss(features)
    before.backward()
    assert koleo_loss(features.detach() - 0.01 * features.grad) < before
    same = torch.ones(3, 4, requires_grad=True)
    koleo_loss(same).backward()
    assert same.grad.isfinite().all()


def test_koleo_is_fp32_under_autocast(rand):
    features = rand(7, 5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo_loss(features)
    torch.testing.assert_close(loss, koleo_loss(features), rtol=0, atol=0)


def test_koleo_reaches_the_student_s_encoder_and_no_head(vit, masked_crops):
    batch, spec = masked_crops
    method = DINOv2(vit, spec, **SMALL, cls_weight=0.0, patch_weight=0.0, koleo_weight=1.0)
    output = method(batch)
    torch.testing.assert_close(output.loss.detach(), output.metrics["koleo_loss"])
    output.loss.backward()
    assert all((p.grad == 0).all() for p in method.pair.student.head.parameters())
    assert method.pair.student.encoder.model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_koleo_needs_two_samples_per_rank(vit, make_batch, rand):
    mask = rand(2, 1, 16) > 0
    batch, spec = make_batch({"global": rand(2, 1, 3, 16, 16).float()}, {"blocks": mask})
    with pytest.raises(ContractError, match="KoLeo needs 2 samples per rank, not 1; raise"):
        DINOv2(vit, spec, **SMALL)
    assert "local" not in batch.views
    # of one sample there is no neighbour, but a loss without KoLeo
    assert DINOv2(vit, spec, **SMALL, koleo_weight=0.0)(batch).metrics["cls_loss"].isfinite()


def test_separate_heads_share_nothing(vit, masked_crops):
    student = DINOv2(vit, masked_crops[1], **SMALL, heads="separate").pair.student
    ours = {p.data_ptr() for p in student.head.parameters()}
    assert not ours & {p.data_ptr() for p in student.patch_head.parameters()}


@pytest.mark.parametrize(("heads", "count"), [("shared", 2), ("separate", 3)])
def test_gradients_are_clipped_by_the_modules_of_the_official_student(
    heads, count, vit, masked_crops
):
    """Backbone, dino_head, ibot_head; the mask token lies in the official backbone."""
    method = DINOv2(vit, masked_crops[1], **SMALL, heads=heads)
    names = {id(p): name for name, p in method.named_parameters()}
    modules = [[names[id(p)] for p in module] for module in method.clipped_together()]
    assert len(modules) == count
    trained = sorted(name for name, p in method.named_parameters() if p.requires_grad)
    assert sorted(name for module in modules for name in module) == trained
    first, *others = modules
    assert "pair.mask_token_1D" in first
    assert "pair.student.encoder.model.patch_embed.proj.weight" in first
    assert all(".head." in n or ".patch_head." in n for module in others for n in module)


def test_norms_of_the_prototypes_start_at_one_and_learn(vit, masked_crops):
    batch, spec = masked_crops
    method = DINOv2(vit, spec, **SMALL)
    norm_K1 = method.pair.student.head.last.norm_K1
    assert (norm_K1 == 1).all()
    method(batch).loss.backward()
    assert norm_K1.grad.abs().sum() > 0
    fixed = DINOv2(vit, spec, **SMALL, norm_last_layer=True).pair.student.head.last
    assert not fixed.norm_K1.requires_grad


def test_sinkhorn_targets_use_all_prototypes(vit, masked_crops):
    batch, spec = masked_crops
    metrics = DINOv2(vit, spec, **SMALL, centering="sinkhorn")(batch).metrics
    assert metrics["mean_entropy"].item() == pytest.approx(math.log(12), rel=0.02)
    assert F.relu(metrics["teacher_entropy"]) < metrics["mean_entropy"]
