"""The same embeddings through lightly's losses and ours."""

import pytest
import torch
import torch.nn.functional as F

from sslpipe.methods.lejepa import epps_pulley, prediction_loss
from sslpipe.methods.msn import msn_loss
from sslpipe.methods.nnclr import nearest_neighbours, nnclr_loss
from sslpipe.methods.parts.sinkhorn import sinkhorn_knopp
from sslpipe.methods.swav import swav_loss

loss = pytest.importorskip("lightly.loss", reason="needs lightly")
swav_module = pytest.importorskip("lightly.loss.swav_loss", reason="needs lightly")
lejepa_module = pytest.importorskip("lightly.loss.lejepa_loss", reason="needs a newer lightly")
modules = pytest.importorskip("lightly.models.modules", reason="needs lightly")


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn(rand, epsilon):
    scores = rand(9, 5).tanh().float()
    found = sinkhorn_knopp(scores, epsilon=epsilon)
    torch.testing.assert_close(found, swav_module.sinkhorn(scores, 3, epsilon))


@pytest.mark.parametrize("queue", [0, 6])
def test_swav(rand, queue):
    scores, rows = rand(5, 9, 4).tanh().float(), rand(2, queue, 4).tanh().float()
    codes = [sinkhorn_knopp(torch.cat([scores[a], rows[a]]), epsilon=0.05)[:9] for a in range(2)]
    theirs = loss.SwaVLoss()(list(scores[:2]), list(scores[2:]), list(rows) if queue else None)
    torch.testing.assert_close(
        swav_loss(scores, torch.stack(codes), temperature=0.1), theirs.squeeze()
    )


def test_msn(rand):
    anchors, targets, prototypes = (x.float() for x in (rand(3, 8, 5), rand(8, 5), rand(6, 5)))
    theirs = loss.MSNLoss(regularization_weight=0.5)(anchors.flatten(0, 1), targets, prototypes)
    ours = msn_loss(anchors, targets, prototypes, me_max_weight=0.5)
    torch.testing.assert_close(ours, theirs)


def test_nearest_neighbours(rand):
    queue, z = (F.normalize(x.float(), dim=1) for x in (rand(12, 4), rand(5, 4)))
    bank = modules.NNMemoryBankModule(size=(12, 4))
    bank(queue, update=True)  # the first call makes the bank, the second fills it
    bank(queue, update=True)
    torch.testing.assert_close(queue[nearest_neighbours(z, queue)], bank(z))


def test_nnclr_differs_by_the_direction_and_the_extra_negatives_of_nt_xent(rand):
    # lightly takes NT-Xent of neighbours and predictions: both directions, and same-side negatives;
    # the paper's eq. 3 has the neighbours as queries and the predictions as candidates
    n, p = (F.normalize(rand(6, 4), dim=1) for _ in range(2))
    logits = torch.cat([n, p]) @ torch.cat([n, p]).T / 0.1
    logits.fill_diagonal_(-torch.inf)
    both = F.cross_entropy(logits, torch.arange(12).roll(6))
    theirs = loss.NTXentLoss(temperature=0.1)(n, p)
    torch.testing.assert_close(theirs, both)
    ours = F.cross_entropy(logits[:6, 6:], torch.arange(6))
    torch.testing.assert_close(nnclr_loss(n, p, temperature=0.1), ours)


def test_sigreg_and_prediction(rand, monkeypatch):
    z = rand(5, 7, 4).float()
    slices = F.normalize(rand(4, 16), dim=0).float()
    theirs = lejepa_module.LeJEPALoss(lambda_param=0.3, sigreg_num_vectors=16)
    monkeypatch.setattr(theirs.sigreg, "_generate_unit_vectors", lambda *_: slices)
    ours = 0.7 * prediction_loss(z, 2) + 0.3 * epps_pulley(z @ slices).mean()
    torch.testing.assert_close(ours, theirs(local_proj=z[2:], global_proj=z[:2]))
