import copy
import math

import pytest
import torch
from torch import nn

from sslpipe import methods
from sslpipe.errors import ContractError
from sslpipe.methods import dino
from sslpipe.methods.parts import heads
from sslpipe.methods.parts.distillation import entropies

SMALL = {"prototypes": 12, "hidden": 16, "bottleneck": 8}


def slow_dino_loss(student, teacher, center, student_temperature, teacher_temperature):
    """Caron et al. 2021, eq. 1 to 3, with loops; mean over pairs as in main_dino.py."""

    def softmax(logits, temperature):
        exps = [math.exp(x / temperature) for x in logits]
        return [e / sum(exps) for e in exps]

    losses = []
    for t, teacher_view in enumerate(teacher.tolist()):
        for v, student_view in enumerate(student.tolist()):
            if t == v:
                continue
            for a, b in zip(teacher_view, student_view, strict=True):
                shifted = [x - c for x, c in zip(a, center.tolist(), strict=True)]
                p, q = softmax(shifted, teacher_temperature), softmax(b, student_temperature)
                losses.append(-sum(x * math.log(y) for x, y in zip(p, q, strict=True)))
    return sum(losses) / len(losses)


@pytest.fixture
def crops(make_batch, rand):
    """Two global and three smaller local views of four images."""
    return make_batch({"global": rand(2, 4, 3, 8, 8).float(), "local": rand(3, 4, 3, 4, 4).float()})


@pytest.mark.parametrize("views", [2, 5])
def test_loss_is_equation_3(rand, views):
    student, teacher, center = rand(views, 3, 6), rand(2, 3, 6), rand(6)
    loss = dino.dino_loss(
        student, teacher, center, student_temperature=0.1, teacher_temperature=0.04
    )
    assert loss.item() == pytest.approx(slow_dino_loss(student, teacher, center, 0.1, 0.04))


def test_uniform_students_cost_the_log_of_the_prototypes(rand):
    loss = dino.dino_loss(
        torch.zeros(4, 3, 6), rand(2, 3, 6), rand(6), student_temperature=0.1,
        teacher_temperature=0.04,
    )  # fmt: skip
    assert loss.item() == pytest.approx(math.log(6))


def test_loss_ignores_constants_and_the_teacher_takes_no_gradient(rand):
    student, teacher = rand(4, 3, 6).requires_grad_(), rand(2, 3, 6).requires_grad_()
    settings = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    loss = dino.dino_loss(student, teacher, torch.zeros(6), **settings)
    shifted = dino.dino_loss(student + 3.0, teacher - 2.0, torch.zeros(6), **settings)
    torch.testing.assert_close(shifted, loss)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()


def test_a_view_never_teaches_itself(rand):
    student, teacher = rand(2, 3, 6).requires_grad_(), rand(2, 3, 6)
    settings = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    loss = dino.dino_loss(student, teacher, torch.zeros(6), **settings)
    loss.backward()
    # view 0 learns from teacher view 1 only: its gradient is (q_0 - p_1) / tau / (B * terms)
    p, q = (teacher[1] / 0.04).softmax(-1), (student.detach()[0] / 0.1).softmax(-1)
    torch.testing.assert_close(student.grad[0], (q - p) / 0.1 / 6)


def test_one_encoder_pass_per_resolution_and_none_of_locals_by_the_teacher(encoder, crops):
    batch, spec = crops
    method = dino.DINO(encoder, spec, **SMALL)
    method(batch)
    assert encoder.calls == [(8, 3, 8, 8), (12, 3, 4, 4)]
    assert method.teacher.encoder.calls == [(8, 3, 8, 8)]


def test_student_logits_are_ordered_global_then_local(encoder, crops):
    batch, spec = crops
    method = dino.DINO(encoder, spec, **SMALL)
    logits_VBK = method.student([batch.views["global"], batch.views["local"]])
    assert logits_VBK.shape == (5, 4, 12)
    one = method.student.head(encoder(batch.views["local"][1]))
    torch.testing.assert_close(logits_VBK[3], one)


def test_local_views_are_optional(encoder, make_batch, rand):
    batch, spec = make_batch({"global": rand(2, 4, 3, 8, 8).float()})
    assert dino.DINO(encoder, spec, **SMALL)(batch).loss.isfinite()


def test_teacher_is_a_separate_equal_frozen_copy(encoder, crops):
    method = dino.DINO(encoder, crops[1], **SMALL)
    student, teacher = dict(method.student.named_parameters()), method.teacher
    assert teacher is not method.student
    assert method.encoder is teacher.encoder is not encoder
    for name, parameter in teacher.named_parameters():
        assert parameter is not student[name]
        assert parameter.data_ptr() != student[name].data_ptr()
        assert not parameter.requires_grad
        assert parameter.equal(student[name])


def test_backward_reaches_the_student_and_not_the_teacher(encoder, crops):
    batch, spec = crops
    method = dino.DINO(encoder, spec, **SMALL)
    output = method(batch)
    output.loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    trained = [p for p in method.student.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in trained)
    assert not any(metric.requires_grad for metric in output.metrics.values())


def test_center_is_used_before_it_moves(encoder, crops):
    batch, spec = crops
    method = dino.DINO(encoder, spec, **SMALL)
    method.center.center_K.copy_(torch.linspace(-0.3, 0.3, 12))
    before = method.center.center_K.clone()
    teacher_TBK = method.teacher([batch.views["global"]])
    student_VBK = method.student(list(batch.views.values()))
    settings = {"student_temperature": 0.1, "teacher_temperature": 0.04}
    expected = dino.dino_loss(student_VBK, teacher_TBK, before, **settings)
    torch.testing.assert_close(method(batch).loss, expected)
    moved = 0.9 * before + 0.1 * teacher_TBK.flatten(0, 1).mean(0)
    torch.testing.assert_close(method.center.center_K, moved)


def test_validation_leaves_the_center_alone(encoder, crops):
    batch, spec = crops
    method = dino.DINO(encoder, spec, **SMALL).eval()
    method(batch)
    assert method.center.center_K.abs().sum() == 0


def test_teacher_temperature_warms_up_linearly(encoder, crops):
    method = dino.DINO(encoder, crops[1], **SMALL, teacher_warmup=0.5)
    seen = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        method.after_step(progress)
        seen.append(method.temperature().item())
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert "progress" in method.state_dict()
    assert "center.center_K" in method.state_dict()


def test_after_step_is_the_ema_with_the_cosine_momentum(encoder, crops):
    method = dino.DINO(encoder, crops[1], **SMALL, momentum=0.9, freeze_last_layer=0.0)
    old = copy.deepcopy(method.teacher.state_dict())
    for parameter in method.student.parameters():
        parameter.data.add_(1.0)
    method.after_step(0.5)  # half way between 0.9 and 1
    new = method.student.state_dict()
    for name, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, 0.95 * old[name] + 0.05 * new[name])
    held = copy.deepcopy(method.teacher.state_dict())
    method.after_step(1.0)
    assert all(value.equal(held[name]) for name, value in method.teacher.state_dict().items())


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.4),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    ],
)
def test_last_layer_stands_still_while_frozen_and_then_learns(encoder, crops, optimizer, learn):
    batch, spec = crops
    method = dino.DINO(encoder, spec, **SMALL, freeze_last_layer=0.5, norm_last_layer=not learn)
    chosen = optimizer([p for p in method.parameters() if p.requires_grad])
    methods.follow(chosen, method, total_steps=4)
    first = copy.deepcopy(method.student.head.state_dict())
    for step in range(4):
        chosen.zero_grad()
        method(batch).loss.backward()
        chosen.step()
        last = method.student.head.last
        moved = not last.direction_KD.equal(first["last.direction_KD"])
        assert moved == (step >= 2)
        assert last.norm_K1.equal(first["last.norm_K1"]) == (step < 2 or not learn)
        assert not method.student.head.mlp[0].weight.equal(first["mlp.0.weight"])


def test_norm_of_the_last_layer_is_one_and_learns_only_if_asked(rand):
    for learn in (False, True):
        last = heads.Prototypes(8, 5, learn_norm=learn)
        assert last.norm_K1.requires_grad == learn
        reference = nn.utils.parametrizations.weight_norm(nn.Linear(8, 5, bias=False))
        reference.parametrizations.weight.original0.data.fill_(1.0)
        reference.parametrizations.weight.original1.data.copy_(last.direction_KD)
        z = rand(4, 8).float()
        torch.testing.assert_close(last(z), reference(z))


def test_head_is_the_official_one(encoder, crops):
    head = dino.DINO(encoder, crops[1], prototypes=12, hidden=512, bottleneck=64).student.head
    assert [type(layer).__name__ for layer in head.mlp] == ["Linear", "GELU"] * 2 + ["Linear"]
    assert [layer.out_features for layer in head.mlp[::2]] == [512, 512, 64]
    assert all(layer.bias.abs().sum() == 0 for layer in head.mlp[::2])
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    features = torch.ones(3, 6)
    cosines = head(features)
    assert cosines.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(
        cosines, nn.functional.linear(nn.functional.normalize(head.mlp(features)),
        nn.functional.normalize(head.last.direction_KD)),
    )  # fmt: skip


def test_logits_are_fp32_under_autocast(encoder, crops):
    batch, spec = crops
    method = dino.DINO(encoder, spec, **SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.student([batch.views["global"]]).dtype == torch.float32
        loss = method(batch).loss
    loss.backward()
    assert loss.dtype == torch.float32


def test_the_teacher_has_batch_statistics_of_its_own_and_no_noise(make_batch, rand):
    class Noisy(nn.Sequential):
        dim = 6

    noisy = Noisy(nn.Flatten(), nn.Linear(3 * 64, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    batch, spec = make_batch({"global": rand(2, 4, 3, 8, 8).float()})
    method = dino.DINO(noisy, spec, **SMALL).train()
    views = [batch.views["global"]]
    assert method.teacher(views).equal(method.teacher(views))
    assert not method.student(views).equal(method.student(views))
    assert noisy[3].p == 0.5
    seen = method.teacher.encoder[2].num_batches_tracked.item()
    assert seen == 2
    method.after_step(0.5)  # buffers are not averaged
    assert method.teacher.encoder[2].num_batches_tracked == seen
    method.encoder.eval()
    method.encoder.train()  # what an evaluation during training does
    assert method.teacher(views).equal(method.teacher(views))


def test_monitors_tell_both_kinds_of_collapse():
    one = torch.zeros(2, 4, 8)
    one[..., 0] = 1.0
    assert entropies(one)["teacher_entropy"].item() == pytest.approx(0)
    spread = entropies(torch.eye(8).view(2, 4, 8))
    assert spread["teacher_entropy"].item() == pytest.approx(0)
    assert spread["mean_entropy"].item() == pytest.approx(math.log(8))
    flat = entropies(torch.full((2, 4, 8), 1 / 8))
    assert flat["teacher_entropy"].item() == pytest.approx(math.log(8))


def test_one_global_view_breaks_the_contract(encoder, make_batch, rand):
    _, spec = make_batch({"global": rand(1, 4, 3, 8, 8), "local": rand(3, 4, 3, 4, 4)})
    with pytest.raises(ContractError, match="dino needs 2 'global' views"):
        dino.DINO(encoder, spec)
