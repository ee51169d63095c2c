"""Our losses beside lightly's on the same embeddings."""

import lightly.loss
import pytest
import torch
from torch import nn

from sslpipe.methods.barlow_twins import barlow_twins_loss
from sslpipe.methods.byol import byol_loss
from sslpipe.methods.moco import info_nce
from sslpipe.methods.simsiam import negative_cosine
from sslpipe.methods.vicreg import vicreg_loss


@pytest.fixture
def pair(rand):
    return rand(16, 8).float(), rand(16, 8).float()


def test_info_nce_is_their_nt_xent_with_a_memory_bank(pair, rand):
    queue_QD = nn.functional.normalize(rand(32, 8).float(), dim=1)
    theirs = lightly.loss.NTXentLoss(temperature=0.07, memory_bank_size=(32, 8))
    theirs.memory_bank.bank = queue_QD
    expected = theirs(*pair)
    torch.testing.assert_close(info_nce(*pair, queue_QD, temperature=0.07), expected)


def test_negative_cosine_is_theirs_and_byol_s_two_and_twice_it(pair):
    expected = lightly.loss.NegativeCosineSimilarity()(*pair)
    torch.testing.assert_close(negative_cosine(*pair), expected)
    # lightly trains BYOL with the cosine; the paper's loss is 2 - 2 cos
    torch.testing.assert_close(byol_loss(*pair), 2 + 2 * expected)


def test_barlow_twins_is_theirs(pair):
    expected = lightly.loss.BarlowTwinsLoss(lambda_param=0.0051)(*pair)
    torch.testing.assert_close(barlow_twins_loss(*pair, redundancy=0.0051), expected)


def test_vicreg_is_theirs(pair):
    torch.testing.assert_close(vicreg_loss(*pair), lightly.loss.VICRegLoss()(*pair))
