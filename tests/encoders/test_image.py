import re

import pytest
import timm
import torch
import torchvision

from sslpipe.encoders import build_encoder, image
from sslpipe.errors import RecipeError
from sslpipe.recipe.names import Entry
from tests.view_specs import square

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}


def build(name, size=32, **settings):
    torch.manual_seed(0)
    return build_encoder(Entry(name, settings, "r.yaml:7"), square(size)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_resnet_loads_back_into_torchvision_by_name(images):
    encoder = build("resnet18")
    assert encoder.dim == 512
    assert encoder(images).shape == (2, 512)
    model = torchvision.models.resnet18(weights=None).eval()
    missing, unexpected = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    model.fc = torch.nn.Identity()
    assert model(images).equal(encoder(images))


def test_resnet_starts_with_zero_residual_branches():
    blocks = build("resnet18").model.layer1
    assert all(block.bn2.weight.abs().sum() == 0 for block in blocks)


def test_cifar_stem_keeps_the_resolution(images):
    shapes = {}
    for stem in ("imagenet", "cifar"):
        model = build("resnet18", stem=stem).model
        model.layer1.register_forward_pre_hook(
            lambda _, inputs, stem=stem: shapes.update({stem: tuple(inputs[0].shape)})
        )
        model(images)
    assert shapes == {"imagenet": (2, 64, 8, 8), "cifar": (2, 64, 32, 32)}


def test_vit_loads_back_into_timm_by_name(images):
    encoder = build("vit_tiny", **TINY, drop_path_rate=0.1)
    assert (encoder.dim, encoder.patch_size) == (24, 4)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **TINY).eval()
    missing, unexpected = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert (missing, unexpected) == (["head.weight", "head.bias"], [])
    expected = model.forward_features(images)
    torch.testing.assert_close(encoder.tokens(images), expected)
    torch.testing.assert_close(encoder(images), expected[:, 0])


def test_short_names_are_timms_patch_16_models():
    for short, name in image.SHORT.items():
        assert name == f"{short}_patch16_224"
        assert name in timm.list_models()
    encoder = build("vit_small", size=64)
    assert (encoder.dim, encoder.patch_size, len(encoder.model.blocks)) == (384, 16, 12)
    assert encoder.model.patch_embed.grid_size == (4, 4)


def test_names_that_count_as_plain_vits_have_one_class_token():
    names = [name for name in timm.list_models("vit_*") if image.VIT_NAME.fullmatch(name)]
    assert len(names) > 15
    with torch.device("meta"):
        for name in (n for n in names if re.search("tiny|small|intern", n)):
            model = timm.create_model(name, depth=1)
            assert type(model).__name__ == "VisionTransformer"
            assert (model.num_prefix_tokens, model.has_class_token) == (1, True)
            assert model.pos_embed.shape[1] == 1 + model.patch_embed.num_patches


def test_vit_takes_other_sizes_as_multi_crop_needs(images):
    encoder = build("vit_tiny", **TINY)
    assert encoder(images[..., :12, :12]).shape == (2, 24)
    assert encoder.tokens(images[..., :12, :12]).shape == (2, 1 + 9, 24)


def test_tokens_of_all_patches_are_the_tokens_without_a_choice(images):
    encoder = build("vit_tiny", **TINY)
    everything = torch.arange(64).expand(2, 64)
    torch.testing.assert_close(encoder.tokens(images, everything), encoder.tokens(images))
    # attention has no order: a permuted choice permutes the tokens, each with its own position
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    shuffled = encoder.tokens(images, order.expand(2, 64))
    torch.testing.assert_close(shuffled[:, 1:], encoder.tokens(images)[:, 1 + order])


def test_many_choices_per_image_are_encoded_as_if_alone(images):
    encoder = build("vit_tiny", **TINY)
    generator = torch.Generator().manual_seed(3)
    choices = torch.rand(3, 2, 64, generator=generator).argsort(-1)[..., :10]
    together = encoder.tokens(images, choices.flatten(0, 1))  # rows: choice by choice
    for m in range(3):
        alone = encoder.tokens(images, choices[m])
        torch.testing.assert_close(together[2 * m : 2 * m + 2], alone)


def test_padding_of_a_choice_is_seen_by_nobody(images):
    encoder = build("vit_tiny", **TINY)
    order = torch.arange(64).expand(2, 64)
    real = torch.arange(64)[:20] < torch.tensor([[20], [12]])
    tokens = encoder.tokens(images, order[:, :20], real_BS=real)
    shorter = encoder.tokens(images[1:], order[1:, :12])
    torch.testing.assert_close(tokens[1:, :13], shorter)
    torch.testing.assert_close(tokens[:1], encoder.tokens(images[:1], order[:1, :20]))


def test_feed_forwards_are_what_the_mlps_add(images):
    encoder = build("vit_tiny", **TINY, drop_path_rate=0.1)
    outputs = encoder.feed_forwards(images)
    assert outputs.shape == (2, 2, 65, 24)
    x = encoder.model.norm_pre(encoder.model._pos_embed(encoder.model.patch_embed(images)))
    for block, output in zip(encoder.model.blocks, outputs, strict=True):
        x = x + block.attn(block.norm1(x))
        torch.testing.assert_close(output, block.mlp(block.norm2(x)))
        x = x + output
    assert not any(block.mlp._forward_hooks for block in encoder.model.blocks)


def test_maps_are_what_is_pooled(images):
    for encoder in (build("resnet18"), build("resnet10t"), build("vit_tiny", **TINY, pool="mean")):
        maps = encoder.maps(images)
        assert maps.shape[:2] == (2, encoder.dim)
        torch.testing.assert_close(maps.mean((2, 3)), encoder(images))
    tokens = encoder.tokens(images)
    assert maps[:, :, 3, 5].equal(tokens[:, 1 + 3 * 8 + 5])


def test_pooling_leaves_weights_and_their_names_as_they_are(images):
    token, mean = (build("vit_tiny", **TINY, pool=pool) for pool in ("token", "mean"))
    mean.load_state_dict(token.state_dict())
    torch.testing.assert_close(mean(images), token.tokens(images)[:, 1:].mean(1))


def test_sincos_positions_are_fixed_and_learned_ones_learn():
    fixed = build("vit_tiny", **TINY, pos_embed="sincos").model.pos_embed
    assert not fixed.requires_grad
    assert fixed.shape == (1, 65, 24)
    assert fixed[0, 0].abs().sum() == 0
    assert fixed[0, 1].tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 6 + [1.0] * 6
    assert build("vit_tiny", **TINY).model.pos_embed.requires_grad


def test_layer_scale_starts_where_said_and_is_none_by_default():
    blocks = build("vit_tiny", **TINY, layer_scale=1e-5).model.blocks
    assert all((b.ls1.gamma == 1e-5).all() and (b.ls2.gamma == 1e-5).all() for b in blocks)
    assert not hasattr(build("vit_tiny", **TINY).model.blocks[0].ls1, "gamma")


def test_any_other_timm_model_works(images):
    encoder = build("resnet10t", drop_path_rate=0.1)
    assert encoder(images).shape == (2, encoder.dim)
    transformer = build("deit_tiny_patch16_224")  # a fixed input size is set to ours
    assert transformer(images).shape == (2, transformer.dim)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet181", {}, "unknown backbone 'resnet181'; did you mean 'resnet18'"),
        ("vit_tinny", {}, "did you mean 'vit_tiny'.*every name of timm"),
        ("convnext_ato", {}, "did you mean 'convnext_atto'"),
        ("resnet18", {"stm": "cifar"}, "no setting 'stm'; did you mean 'stem'"),
        ("resnet18", {"stem": "cifra"}, "stem = 'cifra'"),
        ("vit_tiny", {"patch_size": 5}, "image size 32 is no multiple of patch_size 5"),
        ("vit_tiny", {"embed_dim": 25, "num_heads": 3}, "timm refuses .*embed_dim"),
        ("vit_tiny", {**TINY, "embed_dim": 22, "pos_embed": "sincos"}, "multiple of 4"),
        ("no_such.module:Thing", {}, "cannot import"),
    ],
)
def test_mistakes_are_named_with_their_place(name, settings, message):
    with pytest.raises(RecipeError, match=rf"r\.yaml:7: .*{message}"):
        build(name, **settings)


def test_a_users_own_encoder_gets_the_views(monkeypatch, tmp_path):
    (tmp_path / "my_nets.py").write_text(
        "import math\n\nfrom torch import nn\n\n\ndef flat(view, *, dim: int) -> nn.Module:\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(view.shape), dim))\n"
        "    net.dim = dim\n    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("my_nets:flat", dim=5)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_building_twice_shares_nothing():
    one, two = build("vit_tiny", **TINY), build("vit_tiny", **TINY)
    pointers = {p.data_ptr() for p in one.parameters()}
    assert not pointers & {p.data_ptr() for p in two.parameters()}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet18", {"stem": "cifar"}), ("cifar_resnet", {"width": 8, "blocks": (1, 1, 1, 1)})],
)
def test_maps_are_what_is_pooled_to_features(images, name, settings):
    encoder = build(name, **settings)
    maps = encoder.maps(images)
    assert maps.shape == (2, encoder.dim, 4, 4)
    torch.testing.assert_close(maps.mean((2, 3)), encoder(images))


def test_maps_of_a_vit_are_its_patches_on_their_grid(images):
    encoder = build("vit_tiny", **TINY)
    wide = images[:, :, :16]  # 4 rows of 8 patches
    tokens = encoder.tokens(wide)
    maps = encoder.maps(wide)
    assert maps.shape == (2, 24, 4, 8)
    for row, column in ((0, 0), (1, 5), (3, 7)):
        assert torch.equal(maps[:, :, row, column], tokens[:, 1 + 8 * row + column])
