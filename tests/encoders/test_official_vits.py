"""Where the official ViTs differ from timm's: how weights start, and positions of small crops."""

import math

import pytest
import torch
import torch.nn.functional as F

from sslpipe.encoders import build_encoder
from sslpipe.recipe.names import Entry
from tests.view_specs import square

WIDE = {"embed_dim": 192, "depth": 3, "num_heads": 2, "patch_size": 4}


def build(**settings):
    torch.manual_seed(0)
    return build_encoder(Entry("vit_tiny", WIDE | settings, "r.yaml:7"), square(56)).eval()


def stds(init):
    model = build(init=init).model
    parts = {"token": model.cls_token, "patches": model.patch_embed.proj.weight}
    parts |= {f"proj{i}": block.attn.proj.weight for i, block in enumerate(model.blocks, 1)}
    parts |= {f"fc2{i}": block.mlp.fc2.weight for i, block in enumerate(model.blocks, 1)}
    parts |= {"fc1": model.blocks[0].mlp.fc1.weight, "positions": model.pos_embed}
    return {name: weight.std().item() for name, weight in parts.items()}


UNIFORM = 1 / math.sqrt(3 * 4 * 4 * 3)  # torch's default: U(-1 / sqrt(f), 1 / sqrt(f)), f = 48
CUT = 0.02 * 0.5396  # std of a normal distribution cut at one std


@pytest.mark.parametrize(
    ("init", "token", "patches", "linear"),
    [
        ("timm", 1e-6, UNIFORM, 0.02),
        ("dino", 0.02, UNIFORM, 0.02),
        ("msn", 0.02, math.sqrt(2 / 48), 0.02),
        ("ijepa", 1e-6, 0.02, 0.02),
        ("beit", CUT, CUT, CUT),
    ],
)
def test_weights_start_as_in_the_code_that_is_named(init, token, patches, linear):
    found = stds(init)
    expected = {"token": token, "patches": patches, "fc1": linear, "positions": linear}
    for number in (1, 2, 3):
        scale = math.sqrt(2 * number) if init == "beit" else 1.0
        expected |= {f"proj{number}": linear / scale, f"fc2{number}": linear / scale}
    assert found == {name: pytest.approx(std, rel=0.15) for name, std in expected.items()}


@pytest.mark.parametrize("init", ["msn", "ijepa", "beit"])
def test_the_patch_embedding_starts_without_bias(init):
    assert build(init=init).model.patch_embed.proj.bias.abs().max() == 0


def test_beits_weights_are_cut_at_one_std():
    assert build(init="beit").model.blocks[0].mlp.fc1.weight.abs().max() <= 0.02


def test_fixed_positions_stay_fixed():
    fixed, drawn = build(pos_embed="sincos"), build(pos_embed="sincos", init="beit")
    assert torch.equal(fixed.model.pos_embed, drawn.model.pos_embed)


def officially(positions, size, *, offset):
    """interpolate_pos_encoding of DINO (offset .1) and of MSN (none), for 14 x 14 positions."""
    patches = positions[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    factor = (size + offset) / 14
    made = F.interpolate(patches, scale_factor=(factor, factor), mode="bicubic")
    return made.permute(0, 2, 3, 1).reshape(1, size * size, -1)


@pytest.mark.parametrize(("resample", "offset"), [("bicubic", 0.0), ("bicubic_offset", 0.1)])
def test_positions_of_small_crops_are_those_of_the_official_codes(resample, offset):
    encoder = build(pos_resample=resample)
    model = encoder.model
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    x = model.patch_embed(images)
    placed = encoder.placed(x)
    expected = x.flatten(1, 2) + officially(model.pos_embed, 6, offset=offset)
    torch.testing.assert_close(placed[:, 1:], expected)
    token = (model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1)
    torch.testing.assert_close(placed[:, :1], token)
    antialiased = model._pos_embed(x)
    assert (placed - antialiased).abs().max() > 1e-3
    torch.testing.assert_close(encoder(images), encoder.tokens(images)[:, 0])


def test_whole_views_need_no_resampling():
    encoder = build(pos_resample="bicubic_offset")
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    assert torch.equal(encoder(images), encoder.model(images))


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2", "dinov2_documented", "msn"])
def test_recipes_of_small_crops_resample_as_officially(name):
    from sslpipe import load_recipe, recipes

    settings = load_recipe(recipes()[name]).train.backbone.settings
    assert settings["pos_resample"] == ("bicubic" if name == "msn" else "bicubic_offset")


@pytest.mark.parametrize(
    ("name", "init"),
    [("dino", "dino"), ("ibot", "dino"), ("msn", "msn"), ("beit", "beit"), ("simmim", "beit"),
     ("ijepa", "ijepa")],
)  # fmt: skip
def test_recipes_name_the_start_of_their_code(name, init):
    from sslpipe import load_recipe, recipes

    assert load_recipe(recipes()[name]).train.backbone.settings["init"] == init
