import copy
import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sslpipe import methods
from sslpipe.errors import ContractError
from sslpipe.methods import ibot
from sslpipe.methods.dinov2 import DINOv2
from sslpipe.methods.parts import masked_pair

SMALL = {"prototypes": 12, "hidden": 16, "bottleneck": 8}


def slow_ibot_loss(student_RNK, p_RNK, hidden_RN, temperature):
    """iBOTLoss of main_ibot.py, view by view over ALL patches, the visible ones times 0."""
    costs = []
    for student, p, hidden in zip(student_RNK, p_RNK, hidden_RN, strict=True):
        cost = -(p * (student / temperature).log_softmax(-1)).sum(-1)
        costs.append((cost * hidden).sum() / hidden.sum().clamp(min=1.0))
    return torch.stack(costs).mean()


def official_ibot(method, batch, temperatures):
    """The whole loss as main_ibot.py takes it, with the method's networks: CLS and patch terms."""
    pair, views = method.pair, batch.views["global"]
    student_cls, patches, p_cls, p_patches = [], [], [], []
    for v in range(2):
        hidden, token = batch.masks["blocks"][v], pair.mask_token_1D[0]
        tokens = pair.student.encoder.tokens(views[v], hidden_BN=hidden, mask_token_D=token)
        student_cls.append(pair.student.head(tokens[:, 0]))
        patches.append(pair.student.head(tokens[:, 1:]))
        whole = pair.teacher.head(pair.teacher.encoder.tokens(views[v])).detach()
        shifted_cls, shifted = (whole[:, 0] - method.center.center_K, whole[:, 1:])
        p_cls.append((shifted_cls / temperatures[0]).softmax(-1))
        p_patches.append(((shifted - method.patch_center.center_K) / temperatures[1]).softmax(-1))
    student_cls += [pair.student.head(pair.student.encoder(view)) for view in batch.views["local"]]
    terms, masked = [], []
    for q in range(2):
        for v, student in enumerate(student_cls):
            if v == q:
                masked.append(
                    slow_ibot_loss(patches[v], p_patches[q], batch.masks["blocks"][v], 0.1)
                )
            else:
                terms.append(-(p_cls[q] * (student / 0.1).log_softmax(-1)).sum(-1).mean())
    return torch.stack(terms).mean(), torch.stack(masked).mean()


@pytest.fixture
def method(vit, masked_crops):
    return ibot.IBOT(vit, masked_crops[1], **SMALL)


def without_masks(batch):
    """The same batch with nothing hidden."""
    masks = {name: torch.zeros_like(mask) for name, mask in batch.masks.items()}
    hidden = {name: 0 * counts for name, counts in batch.hidden.items()}
    return dataclasses.replace(batch, masks=masks, hidden=hidden)


def test_loss_is_the_mean_over_hidden_patches_of_the_mean_over_views(rand, masked_crops):
    hidden_RN = masked_crops[0].masks["blocks"].flatten(0, 1)
    student, teacher = rand(8, 16, 6), rand(8, 16, 6).softmax(-1)
    loss = ibot.ibot_loss(student[hidden_RN], teacher[hidden_RN], hidden_RN, temperature=0.1)
    torch.testing.assert_close(loss, slow_ibot_loss(student, teacher, hidden_RN, 0.1))


def test_double_precision_stays_double(rand):
    """A third of three costs is not exact in float32."""
    hidden_RN = torch.tensor([[True, True, True, False], [True, False, False, False]])
    student, teacher = rand(2, 4, 6).double(), rand(2, 4, 6).double().softmax(-1)
    cost = -(teacher * (student / 0.1).log_softmax(-1)).sum(-1)
    expected = (cost[0, :3].sum() / 3 + cost[1, 0]) / 2
    loss = ibot.ibot_loss(student[hidden_RN], teacher[hidden_RN], hidden_RN, temperature=0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_uniform_students_cost_the_log_of_the_prototypes_per_masked_view(rand, masked_crops):
    hidden_RN = masked_crops[0].masks["blocks"].flatten(0, 1)
    p = rand(27, 6).softmax(-1)
    loss = ibot.ibot_loss(torch.zeros(27, 6), p, hidden_RN, temperature=0.1)
    assert loss.item() == pytest.approx(math.log(6) * 6 / 8)  # two of eight views are whole


def test_index_is_that_of_boolean_indexing(masked_crops):
    hidden_RN = masked_crops[0].masks["blocks"].flatten(0, 1)
    expected = hidden_RN.flatten().nonzero()[:, 0]
    assert masked_pair.hidden_index(hidden_RN, 27).equal(expected)
    assert masked_pair.hidden_index(torch.zeros(2, 3, dtype=torch.bool), 0).shape == (0,)


def test_loss_is_the_official_one_after_the_centres_moved(method, masked_crops):
    batch, _ = masked_crops
    method.center.center_K.copy_(torch.linspace(-0.3, 0.3, 12))
    method.patch_center.center_K.copy_(torch.linspace(0.2, -0.2, 12))
    method.pair.mask_token_1D.data.normal_()
    cls_loss, patch_loss = official_ibot(method, batch, (0.04, 0.04))
    output = method(batch)
    torch.testing.assert_close(output.metrics["cls_loss"], cls_loss.detach())
    torch.testing.assert_close(output.metrics["patch_loss"], patch_loss.detach())
    torch.testing.assert_close(output.loss, cls_loss + patch_loss)


def test_weights_and_the_patches_own_temperature(vit, masked_crops):
    batch, spec = masked_crops
    method = ibot.IBOT(
        vit, spec, **SMALL, cls_weight=2.0, patch_weight=0.5, teacher_warmup=0.5,
        patch_temperature=(0.05, 0.09),
    )  # fmt: skip
    method.after_step(0.25)
    cls_loss, patch_loss = official_ibot(method, batch, (0.055, 0.07))
    torch.testing.assert_close(method(batch).loss, 2.0 * cls_loss + 0.5 * patch_loss)


def test_only_the_teacher_sees_hidden_patches(method, masked_crops):
    batch, _ = masked_crops
    hidden = batch.masks["blocks"].view(2, 4, 1, 4, 1, 4, 1).expand(-1, -1, 3, -1, 4, -1, 4)
    noisy = batch.views["global"] + 3.0 * hidden.reshape(2, 4, 3, 16, 16)
    other = dataclasses.replace(batch, views=batch.views | {"global": noisy})
    (student, teacher), (student_2, teacher_2) = method.pair(batch), method.pair(other)
    torch.testing.assert_close(student.features_VBD, student_2.features_VBD)
    torch.testing.assert_close(student.patches_XK, student_2.patches_XK)
    assert not torch.allclose(teacher.cls_VBK[1, 0], teacher_2.cls_VBK[1, 0])
    torch.testing.assert_close(teacher.cls_VBK[0, 0], teacher_2.cls_VBK[0, 0])  # 0 hidden


@pytest.mark.parametrize("kind", [ibot.IBOT, DINOv2])
def test_passes_per_resolution_and_heads_on_hidden_patches_only(kind, vit, masked_crops):
    batch, spec = masked_crops
    method = kind(vit, spec, **SMALL)
    images, rows = [], []
    for net in (method.pair.student, method.pair.teacher):
        embed = net.encoder.model.patch_embed
        embed.register_forward_hook(lambda _, args, __: images.append(tuple(args[0].shape)))
        net.head.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    method(batch)
    assert images == [(8, 3, 16, 16), (8, 3, 16, 16), (12, 3, 8, 8)]  # teacher, then student
    assert rows == [8, 27, 20, 27]


def test_one_head_for_all_and_a_frozen_teacher(method, masked_crops):
    pair = method.pair
    assert pair.student.patch_head is pair.student.head
    assert pair.teacher.patch_head is pair.teacher.head is not pair.student.head
    assert method.encoder is pair.teacher.encoder
    method(masked_crops[0]).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in pair.teacher.parameters())
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in trained)
    assert pair.mask_token_1D.grad.shape == (1, 24)


def test_centres_are_used_before_they_move_and_patches_have_their_own(method, masked_crops):
    batch, _ = masked_crops
    _, teacher = method.pair(batch)
    cls, patches = (
        0.1 * logits.flatten(0, -2).mean(0) for logits in (teacher.cls_VBK, teacher.patches_XK)
    )
    method.eval()
    method(batch)
    assert method.center.center_K.abs().sum() == method.patch_center.center_K.abs().sum() == 0
    method.train()
    method(batch)
    torch.testing.assert_close(method.center.center_K, cls)
    torch.testing.assert_close(method.patch_center.center_K, patches)


def test_a_batch_of_whole_views_has_a_loss_and_leaves_the_patches_centre(method, masked_crops):
    method.patch_center.center_K.fill_(0.5)
    output = method(without_masks(masked_crops[0]))
    output.loss.backward()
    assert output.metrics["patch_loss"] == 0
    assert method.patch_center.center_K.equal(torch.full((12,), 0.5))
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", [ibot.IBOT, DINOv2])
def test_last_layers_stand_still_while_frozen_and_the_teacher_follows(kind, vit, masked_crops):
    batch, spec = masked_crops
    heads = {"heads": "separate"} if kind is DINOv2 else {}
    method = kind(vit, spec, **SMALL, **heads, freeze_last_layer=0.5, momentum=0.9)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 0.01)
    methods.follow(optimizer, method, total_steps=4)
    first = copy.deepcopy(method.pair.student.state_dict())
    for step in range(4):
        optimizer.zero_grad()
        method(batch).loss.backward()
        old = copy.deepcopy(method.pair.teacher.state_dict())
        optimizer.step()
        new = method.pair.student.state_dict()
        for part in ("head", "patch_head"):
            name = f"{part}.last.direction_KD"
            assert new[name].equal(first[name]) == (step < 2)
        m = 1 - 0.1 * 0.5 * (1 + math.cos(math.pi * (step + 1) / 4))
        for name, value in method.pair.teacher.state_dict().items():
            torch.testing.assert_close(value, m * old[name] + (1 - m) * new[name])


class Reads(TorchDispatchMode):
    """Notes every operation whose result, or its size, must come back to the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in {"index", "index_put", "index_put_"} and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or name in {"_local_scalar_dense", "nonzero", "masked_select", "equal"}:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("centering", ["centering", "sinkhorn"])
@pytest.mark.parametrize("kind", [ibot.IBOT, DINOv2])
def test_a_step_reads_nothing_back_to_the_host(kind, centering, vit, masked_crops):
    batch, spec = masked_crops
    settings = {"centering": centering, "heads": "separate"} if kind is DINOv2 else {}
    method = kind(vit, spec, **SMALL, **settings)
    with Reads() as reads:
        method(batch).loss.backward()
        method.after_step(0.001)
        method.after_step(0.5)
    assert reads.seen == []
    with reads:
        batch.views["global"][batch.masks["blocks"][:, :, 0]].sum().item()
    assert reads.seen == ["index", "_local_scalar_dense"]  # it would notice


def test_loss_is_fp32_under_autocast(method, masked_crops):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(masked_crops[0])
    output.loss.backward()
    assert {output.loss.dtype, *(m.dtype for m in output.metrics.values())} == {torch.float32}


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_what_breaks_the_contract_says_what_to_change(name, vit, encoder, masked_crops):
    spec, kind = masked_crops[1], methods.METHODS[name]
    one = dataclasses.replace(spec.masks["blocks"], count=1)
    with pytest.raises(
        ContractError, match=f"{name} needs a mask for each of the 2 .*blocks.count to 2"
    ):
        kind(vit, dataclasses.replace(spec, masks={"blocks": one}))
    with pytest.raises(ContractError, match=rf"{name} needs masks\['blocks'\]"):
        kind(vit, dataclasses.replace(spec, masks={}))
    with pytest.raises(ContractError, match=f"{name} needs an encoder with tokens"):
        kind(encoder, spec)
