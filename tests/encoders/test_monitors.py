import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from sslpipe.encoders.monitors import embedding_std, monitor, rankme, spread_over_images
from sslpipe.methods.simclr import pair_monitors


def test_std_of_healthy_and_collapsed_embeddings():
    z_ND = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert embedding_std(z_ND).item() == pytest.approx(1 / math.sqrt(64), rel=0.01)
    assert embedding_std(z_ND[:1].expand(50, -1)).item() == pytest.approx(0, abs=1e-7)
    assert embedding_std(z_ND[:1]).item() == 0.0


def test_std_divides_by_one_less_than_the_samples_as_simclrs_metric_does():
    z_ND = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    by_hand = np.std(normalize(z_ND, dim=1).numpy(), axis=0, ddof=1).mean()
    assert embedding_std(z_ND).item() == pytest.approx(by_hand, rel=1e-6)
    metric = pair_monitors(z_ND[:3], z_ND[3:])["embedding_std"]
    torch.testing.assert_close(embedding_std(z_ND), metric)


def test_one_convention_for_all_values_and_one_image_has_no_spread():
    values = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    by_hand = np.std(values.numpy(), axis=0, ddof=1).mean()
    assert spread_over_images(values).item() == pytest.approx(by_hand, rel=1e-6)
    assert spread_over_images(values[:1]).item() == 0.0


def test_std_ignores_the_norms():
    z_ND = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    factors = torch.arange(1, 51)[:, None]
    torch.testing.assert_close(embedding_std(z_ND * factors), embedding_std(z_ND))


def test_rankme_is_the_papers_formula():
    z_ND = torch.randn(30, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    sigma = np.sqrt(np.linalg.eigvalsh((z_ND.T @ z_ND).double().numpy()))
    p = sigma / sigma.sum() + 1e-7
    assert rankme(z_ND).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_equal_directions_is_their_number(rank):
    z_ND = torch.zeros(20, 8)
    for index in range(rank):
        z_ND[index, index] = 5.0
    assert rankme(z_ND).item() == pytest.approx(rank, rel=1e-4)


def test_rankme_is_uncentred_and_scale_free():
    z_ND = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rankme(z_ND * 100), rankme(z_ND))
    assert rankme(z_ND + 50) < 0.5 * rankme(z_ND)
    assert rankme(torch.zeros(4, 3)).isfinite()


def test_monitor_sees_few_images_and_moves_no_statistic():
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 5))
    seen = []
    encoder.register_forward_hook(lambda m, i, out: seen.append((len(out), m.training)))
    values = monitor(encoder, torch.randn(20, 3, 2, 2), limit=7)
    assert seen == [(7, False)]
    assert encoder[1].training
    assert encoder[1].num_batches_tracked == 0
    assert values.keys() == {"feature_std", "feature_rankme"}
    assert 1 <= values["feature_rankme"] <= 5
