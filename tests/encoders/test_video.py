"""Encoders of clips against slow transcriptions and torchvision, and inflated weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sslpipe.batch import ViewSpec
from sslpipe.encoders import PatchEncoder, build_encoder
from sslpipe.encoders.patches import sincos
from sslpipe.errors import RecipeError
from sslpipe.recipe import Entry
from sslpipe.train.warm_start import fill, read_weights
from tests.view_specs import square

CLIPS = ViewSpec("global", 1, "CTHW", (3, 4, 16, 24))
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}
VIT = Entry("vit_tiny", TINY | {"patch_size": [2, 8, 8]}, "r.yaml:7")
DIVIDED = Entry("timesformer", TINY | {"size": "tiny", "patch_size": 8}, "r.yaml:7")


def build(entry, view=CLIPS):
    torch.manual_seed(0)
    return build_encoder(entry, view).eval()


@pytest.fixture(scope="module")
def clips():
    return torch.randn(2, 3, 4, 16, 24, generator=torch.Generator().manual_seed(0))


def with_settings(entry, **settings):
    return Entry(entry.name, {**entry.settings, **settings}, entry.where)


def test_tubelets_are_linear_in_their_pixels_and_lie_in_raster_order(clips):
    encoder = build(VIT)
    assert isinstance(encoder, PatchEncoder)
    embed = encoder.model.patch_embed
    weight, bias = embed.proj.weight.flatten(1), embed.proj.bias
    expected = [
        clips[:, :, t : t + 2, r : r + 8, c : c + 8].flatten(1) @ weight.T + bias
        for t in (0, 2)
        for r in (0, 8)
        for c in (0, 8, 16)
    ]
    torch.testing.assert_close(embed(clips).flatten(1, 3), torch.stack(expected, 1))
    assert encoder.maps(clips).shape == (2, 24, 2, 2, 3)
    assert encoder(clips).shape == (2, 24)
    assert encoder.last_blocks(clips, 2).patches.equal(encoder.tokens(clips)[:, 1:])


def test_a_clip_s_hidden_tubelets_are_not_seen(clips):
    encoder = build(with_settings(VIT, pos_embed="sincos", pool="mean"))
    visible = torch.tensor([[0, 4, 7], [11, 2, 5]])
    tokens = encoder.tokens(clips, visible)
    assert tokens.shape == (2, 1 + 3, 24)
    seen = torch.zeros(2, 12, dtype=torch.bool).scatter(1, visible, True).view(2, 1, 2, 2, 3)
    pixels = seen.repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    torch.testing.assert_close(encoder.tokens(torch.where(pixels, clips, 9.0), visible), tokens)
    assert not torch.allclose(encoder.tokens(torch.where(pixels, 9.0, clips), visible), tokens)


def test_positions_are_those_of_videomae():
    table = sincos(8, (2, 3, 2))
    assert table.shape == (1, 13, 8)
    assert table[0, 0].abs().sum() == 0  # the class token
    for n in range(12):
        angles = [n / np.power(10000, 2 * (j // 2) / 8) for j in range(8)]
        expected = [math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)]
        assert table[0, 1 + n].tolist() == pytest.approx(expected, abs=1e-6)


def slow_divided(block, x, height, width, frames):
    """TimeSformer's Block.forward on [cls, (h w t)], t fastest, clip by clip and place by place."""
    out = []
    for clip in x:
        cls, xt = clip[:1], clip[1:].clone()
        for place in range(height * width):
            rows = slice(place * frames, (place + 1) * frames)
            moved = block.temporal_attn(block.temporal_norm1(xt[rows][None]))[0]
            xt[rows] = xt[rows] + block.temporal_fc(moved)
        gathered, spatial = [], torch.zeros_like(xt)
        for t in range(frames):
            seen = block.attn(block.norm1(torch.cat([cls, xt[t::frames]])[None]))[0]
            gathered.append(seen[:1])
            spatial[t::frames] = seen[1:]
        both = torch.cat([cls, xt]) + torch.cat([torch.stack(gathered).mean(0), spatial])
        out.append(both + block.mlp(block.norm2(both)))
    return torch.stack(out)


@torch.no_grad()
def test_divided_attention_is_the_official_one():
    encoder = build(DIVIDED)
    block = encoder.model.blocks[1]
    assert block.temporal_fc.weight.abs().sum() == 0
    nn.init.normal_(block.temporal_fc.weight)
    x = torch.randn(2, 1 + 2 * 3 * 4, 24)
    ours = x[:, 1:].view(2, 6, 4, 24).transpose(1, 2)
    cls, patches = block(x[:, :1], ours)
    expected = slow_divided(block, x, 2, 3, 4)
    torch.testing.assert_close(cls, expected[:, :1])
    torch.testing.assert_close(patches.transpose(1, 2).flatten(1, 2), expected[:, 1:])


@torch.no_grad()
def test_timesformer_begins_without_time_and_learns_it(clips):
    encoder = build(DIVIDED)
    torch.testing.assert_close(encoder(clips.flip(2)), encoder(clips))
    for block in encoder.model.blocks:
        nn.init.normal_(block.temporal_fc.weight, std=0.1)
    nn.init.normal_(encoder.model.time_embed)
    assert not torch.allclose(encoder(clips.flip(2)), encoder(clips), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("entry", [VIT, DIVIDED], ids=lambda entry: entry.name)
def test_weights_of_images_are_inflated(entry, clips, tmp_path):
    picture = build(Entry("vit_tiny", TINY | {"patch_size": 8}), square(24))
    torch.save(picture.model.state_dict(), tmp_path / "picture.pth")
    encoder = build(entry)
    said = fill(encoder, read_weights(tmp_path / "picture.pth"))
    assert said.endswith("inflated from images; positions of 3 x 3 patches for 2 x 2 x 3") or (
        entry is DIVIDED and "interpolated to 2 x 3" in said
    )
    model, still = encoder.model, clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    images = picture.model.patch_embed(clips[:, :, 0])  # (B, h, w, D)
    if entry is VIT:
        embedded = model.patch_embed(still)
        torch.testing.assert_close(embedded, images[:, None].expand(-1, 2, -1, -1, -1))
        places = model.pos_embed[0, 1:].view(2, 6, -1)
        assert places[0].equal(places[1])
    else:
        attention = model.blocks[0].temporal_attn.qkv.weight
        assert attention.equal(picture.model.blocks[0].attn.qkv.weight)
        assert model.blocks[0].temporal_fc.weight.abs().sum() == 0


def test_fixed_positions_are_not_replaced_by_those_of_images(tmp_path):
    picture = build(Entry("vit_tiny", TINY | {"patch_size": 8}), square(24))
    torch.save(picture.model.state_dict(), tmp_path / "picture.pth")
    encoder = build(with_settings(VIT, pos_embed="sincos"))
    fill(encoder, read_weights(tmp_path / "picture.pth"))
    assert encoder.model.pos_embed.equal(sincos(24, (2, 2, 3)))


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18"])
def test_resnets_are_torchvision_s_and_can_be_narrow(name, clips):
    import torchvision

    with torch.device("meta"):
        theirs = getattr(torchvision.models.video, name)(weights=None).state_dict()
        ours = build_encoder(Entry(name), CLIPS).model.state_dict()
    del theirs["fc.weight"], theirs["fc.bias"]
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    narrow = build(Entry(name, {"width": 8, "blocks": [1, 1, 2, 1]}))
    assert (narrow.dim, narrow(clips).shape) == (64, (2, 64))
    assert len(narrow.model.layer3) == 2
    assert narrow.model.layer1[0].conv2[1].num_features == 8


def test_bottlenecks_stand_for_the_r3d_50_of_papers(clips):
    with torch.device("meta"):
        encoder = build_encoder(Entry("r3d_50"), CLIPS)
    assert encoder.dim == 2048
    assert [len(encoder.model.get_submodule(f"layer{n}")) for n in (1, 2, 3, 4)] == [3, 4, 6, 3]
    narrow = build(Entry("r3d_50", {"width": 4, "blocks": [1, 1, 1, 1]}))
    assert narrow(clips).shape == (2, narrow.dim) == (2, 128)


@pytest.mark.parametrize(
    ("name", "settings", "view", "words"),
    [
        ("vit_tiny", {"patch_size": [2, 8]}, CLIPS, r"patch_size = \[2, 8\]; clips have patches"),
        ("vit_tiny", {"patch_size": [3, 8, 8]}, CLIPS, r"\(4, 16, 24\) is no multiple of .*3, 8"),
        ("vit_tiny", {"patch_size": [2, 8, 8]}, square(16), "square patches; write one number"),
        ("timesformer", {"patch_size": 7}, CLIPS, "clips of whole patches of 7 px"),
        ("timesformer", {"patch_size": 8}, square(16), "axes CHW"),
        ("r3d_18", {}, square(16), "takes clips of 3 channels"),
        ("r3d_18", {"width": 0}, CLIPS, "width = 0"),
    ],
)
def test_what_cannot_be_built_is_an_error_of_the_recipe(name, settings, view, words):
    with pytest.raises(RecipeError, match=rf"r\.yaml:7: {name}.*{words}"):
        build_encoder(Entry(name, settings, "r.yaml:7"), view)
