import numpy as np
import pytest
import torch
from torch import nn

from sslpipe.encoders import build_encoder
from sslpipe.evaluate.features import central_batches
from sslpipe.recipe.names import Entry
from sslpipe.report.patches import (
    attention,
    central_views,
    class_row,
    heat,
    in_colours,
    min_max,
    places,
)
from sslpipe.report.pictures import SampleFinder
from tests.report.conftest import subject
from tests.view_specs import square


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_attention_is_what_timm_multiplies_values_with(images):
    encoder = subject("x").encoder.eval()
    module = encoder.model.blocks[-1].attn
    module.fused_attn = False  # then the weights pass through a dropout that does nothing
    kept = []
    module.attn_drop.register_forward_hook(lambda m, given, out: kept.append(out.detach()))
    with torch.no_grad():
        encoder(images)
    row_BET = class_row(encoder, images)
    torch.testing.assert_close(row_BET, kept[0][:, :, 0])
    torch.testing.assert_close(row_BET.sum(-1), torch.ones(2, 3))
    assert len(module._forward_pre_hooks) == 0
    found = attention(encoder, images)
    assert found.maps_BEhw.shape == (2, 3, 4, 4)
    torch.testing.assert_close(found.maps_BEhw, min_max(kept[0][:, :, 0, 1:].reshape(2, 3, 4, 4)))
    assert (found.maps_BEhw.amin((-2, -1)) == 0).all()


def test_without_a_trained_class_token_patches_are_compared(images):
    settings = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "pool": "mean"}
    encoder = build_encoder(Entry("vit_tiny", settings), square(32))
    found = attention(encoder, images)
    assert found.maps_BEhw.shape == (2, 1, 4, 4)
    assert (found.maps_BEhw[:, 0, 2, 2] == 1).all()
    assert "similarity" in found.kind


def test_places_of_encoders(images):
    assert places(nn.Flatten(), images) is None
    resnet = build_encoder(Entry("resnet18"), square(32))
    assert places(resnet, images) is None  # one place only
    assert places(resnet, torch.randn(1, 3, 128, 128)).shape == (1, 512, 4, 4)
    assert resnet.training


def test_colours_are_three_principal_components_in_one_basis():
    from sklearn.decomposition import PCA

    maps = torch.randn(3, 12, 5, 5, generator=torch.Generator().manual_seed(0))
    first, second = in_colours([maps, maps + 0])
    assert first.shape == (3, 5, 5, 3)
    np.testing.assert_array_equal(first, second)
    rows = torch.nn.functional.normalize(maps, dim=1).permute(0, 2, 3, 1).reshape(-1, 12)
    values = PCA(3).fit_transform(rows.double().numpy()).reshape(3, 5, 5, 3)
    for channel in range(3):
        rank = abs(np.corrcoef(values[..., channel].ravel(), first[..., channel].ravel())[0, 1])
        assert rank > 0.98, "but for what the percentiles cut off"
    assert first.min() == 0
    assert first.max() == 255
    assert in_colours([maps, maps[:, :6]])[1].shape == (3, 5, 5, 3)


def test_heat_grows_lighter():
    ramp = heat(torch.linspace(0, 1, 20)[None])[0].astype(float)
    lightness = ramp @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()


def test_pictures_are_what_was_evaluated(packed, stored):
    recipe, uids = subject("x").recipe, stored[0][[4, 30, 17]]
    with SampleFinder(packed) as finder:
        samples = finder.samples(uids.numpy())
    found = central_views(recipe, samples, scale=1)
    with central_batches(recipe, shards=packed, device="cpu") as batches:
        (batch,) = list(batches)
        views = dict(zip(batch.uids.tolist(), batch.in_float32().views["global"][0], strict=True))
    expected = torch.stack([views[uid] for uid in uids.tolist()])
    torch.testing.assert_close(found.views_BCHW, expected, atol=1e-5, rtol=0)
    assert found.pictures_BHWC.shape == (3, 32, 32, 3)
    assert central_views(recipe, samples, scale=2).pictures_BHWC.shape == (3, 64, 64, 3)
