"""Our losses of DINO, iBOT and DINOv2 against those of lightly on the same numbers."""

import pytest
import torch

from sslpipe.methods.dino import dino_loss
from sslpipe.methods.dinov2 import koleo_loss
from sslpipe.methods.ibot import ibot_loss

losses = pytest.importorskip("lightly.loss", reason="needs lightly")


@pytest.mark.parametrize("center", [0.0, 1.0])
def test_dino(center, rand):
    student, teacher = rand(5, 7, 9).float(), rand(2, 7, 9).float()
    theirs = losses.DINOLoss(output_dim=9, student_temp=0.1)
    theirs.center.copy_(center * torch.linspace(-1, 1, 9))
    expected = theirs(list(teacher), list(student), teacher_temp=0.05)
    ours = dino_loss(
        student, teacher, center * torch.linspace(-1, 1, 9), student_temperature=0.1,
        teacher_temperature=0.05,
    )  # fmt: skip
    torch.testing.assert_close(ours, expected)


def test_ibot(rand, masked_crops):
    hidden_RN = masked_crops[0].masks["blocks"].flatten(0, 1)
    student, teacher = rand(27, 9).float(), rand(27, 9).float()
    theirs = losses.IBOTPatchLoss(output_dim=9, teacher_temp=0.05)
    expected = theirs(teacher, student, hidden_RN.view(8, 4, 4))
    ours = ibot_loss(student, (teacher / 0.05).softmax(-1), hidden_RN, temperature=0.1)
    torch.testing.assert_close(ours, expected)


def test_koleo(rand):
    features = rand(11, 6).float()
    torch.testing.assert_close(koleo_loss(features), losses.KoLeoLoss()(features))
