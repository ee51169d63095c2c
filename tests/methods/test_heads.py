import pytest
import torch
from torch import nn

from sslpipe.encoders import build_encoder
from sslpipe.encoders.libraries import library
from sslpipe.encoders.patches import sincos
from sslpipe.errors import ContractError, ExtraError
from sslpipe.methods.parts import heads, teachers
from sslpipe.recipe.names import Entry
from tests.view_specs import square


def test_ema_is_exact_arithmetic_on_parameters_only():
    teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    teacher.weight.data.fill_(8.0)
    student.weight.data.fill_(4.0)
    student.running_mean.fill_(5.0)
    teachers.ema_update(teacher, student, 0.75)
    assert teacher.weight.tolist() == [7.0, 7.0]  # 0.75 * 8 + 0.25 * 4
    assert student.weight.tolist() == [4.0, 4.0]
    assert teacher.running_mean.tolist() == [0.0, 0.0]
    teachers.ema_update(teacher, student, 1.0)
    assert teacher.weight.tolist() == [7.0, 7.0]
    teachers.ema_update(teacher, student, 0.0)
    assert teacher.weight.tolist() == [4.0, 4.0]


def test_cosine_reaches_its_ends_exactly():
    assert teachers.cosine_between(0.996, 1.0, 0.0) == 0.996
    assert teachers.cosine_between(0.996, 1.0, 1.0) == 1.0
    assert teachers.cosine_between(2.0, 4.0, 0.5) == pytest.approx(3.0)
    assert teachers.cosine_between(0.0, 1.0, 1 / 3) == pytest.approx(0.25)
    assert all(teachers.cosine_between(0.996, 1.0, i / 1000) <= 1.0 for i in range(1001))
    with pytest.raises(AssertionError):
        teachers.cosine_between(0.996, 1.0, 1.01)


def test_frozen_copy_zeroes_known_rates_and_nothing_else():
    class DropPath(nn.Module):
        drop_prob = 0.1

    class GeM(nn.Module):
        p = 3.0  # an exponent

    module = nn.Sequential(DropPath(), GeM(), nn.Dropout(0.5), nn.Linear(2, 2))
    copy = teachers.frozen_copy(module)
    assert [copy[0].drop_prob, copy[1].p, copy[2].p] == [0.0, 3.0, 0.0]
    assert [module[0].drop_prob, module[2].p] == [0.1, 0.5]
    assert not copy[3].weight.requires_grad
    assert module[3].weight.requires_grad


def test_frozen_copy_switches_off_timms_drop_path():
    settings = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    entry = Entry("vit_tiny", {**settings, "drop_path_rate": 0.9})
    student = build_encoder(entry, square(8)).train()
    teacher = teachers.frozen_copy(student).train()
    images = torch.ones(16, 3, 8, 8)
    assert teacher(images).equal(teacher(images))
    assert not student(images).equal(student(images))


def test_sincos_refuses_a_width_it_cannot_split():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos(6, (2, 2))


def test_a_missing_library_says_what_to_install():
    with pytest.raises(ExtraError, match=r"sslpipe\[train\]"):
        library("no_such_library")


def test_the_number_of_features_is_seen_through_a_wrapper(encoder):
    assert heads.feature_dim(encoder, "simclr") == 6
    assert heads.feature_dim(torch.compile(encoder), "simclr") == 6
    encoder.dim = 6.0
    with pytest.raises(ContractError, match=r"needs encoder\.dim.*TinyEncoder has no such int"):
        heads.feature_dim(encoder, "simclr")
