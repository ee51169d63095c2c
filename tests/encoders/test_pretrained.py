import json
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from timm.models import save_for_hf

from sslpipe.encoders import BlockEncoder
from sslpipe.encoders.central_view import CentralView
from sslpipe.encoders.image import build_encoder
from sslpipe.encoders.pretrained import is_library_name, pretrained
from sslpipe.errors import SslpipeError
from sslpipe.recipe.names import Entry
from tests.view_specs import square

VIT = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 32}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved(folder, name="vit_tiny_patch16_224", **settings):
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=5, **settings).eval()
    model.pretrained_cfg.update(
        input_size=(3, 32, 32), crop_pct=0.5, mean=(0.1, 0.2, 0.3), interpolation="bilinear"
    )
    save_for_hf(model, folder, model_args=settings, safe_serialization=True)
    return model


def test_an_exported_folder_gives_the_features_and_pictures_of_its_model(tmp_path, images):
    model = saved(tmp_path, **VIT)
    encoder, expected = pretrained(str(tmp_path))
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert encoder.eval()(images).equal(features)
    assert encoder.dim == 24
    assert expected == CentralView((32, 32), 64, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "bilinear")


def test_without_weights_the_architecture_is_the_same_and_the_start_the_generators(tmp_path):
    saved(tmp_path, **VIT)
    states = []
    for weights, seed in ((True, 0), (False, 0), (False, 0), (False, 1)):
        torch.manual_seed(seed)
        states.append(pretrained(str(tmp_path), weights=weights)[0].state_dict())
    trained, *fresh = states
    assert {n: t.shape for n, t in trained.items()} == {n: t.shape for n, t in fresh[0].items()}
    name = "model.blocks.0.attn.qkv.weight"
    assert fresh[0][name].equal(fresh[1][name])
    assert not fresh[0][name].equal(fresh[2][name])
    assert not fresh[0][name].equal(trained[name])


def intermediate(model, images, count):
    """Class tokens of the last blocks and mean of the patches, by hooks on the model."""
    seen = []
    hooks = [b.register_forward_hook(lambda _, __, out: seen.append(out)) for b in model.blocks]
    model.forward_features(images)
    for hook in hooks:
        hook.remove()
    normed = [model.norm(x) for x in seen[-count:]]
    return torch.stack([x[:, 0] for x in normed], 1), normed[-1][:, model.num_prefix_tokens :]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_last_blocks_of_a_library_vit(tmp_path, images, name):
    model = saved(tmp_path, name, **VIT)
    encoder = pretrained(str(tmp_path))[0].eval()
    assert isinstance(encoder, BlockEncoder)
    shown = encoder.last_blocks(images, 2)
    classes, patches = intermediate(model, images, 2)
    assert shown.features.equal(encoder(images))
    assert shown.classes.equal(classes)
    assert shown.patches.equal(patches)
    assert encoder.maps(images).flatten(2).mT.equal(patches)
    assert encoder.last_blocks(images, 9).classes.shape == (2, 3, 24)  # it has three blocks


@pytest.mark.parametrize("pos_resample", ["antialias", "bicubic_offset"])
def test_last_blocks_of_our_vit(images, pos_resample):
    settings = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8}
    entry = Entry("vit_tiny", {**settings, "pos_resample": pos_resample}, "r.yaml:7")
    encoder = build_encoder(entry, square(32)).eval()
    shown = encoder.last_blocks(images, 2)
    classes, patches = intermediate(encoder.model, images, 2)
    assert shown.features.equal(encoder(images))
    torch.testing.assert_close(shown.classes, classes)
    torch.testing.assert_close(shown.patches, patches)
    wider = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert encoder.last_blocks(wider, 1).patches.equal(encoder.tokens(wider)[:, 1:])


def test_a_vit_without_class_token_shows_none(tmp_path, images):
    saved(tmp_path, **VIT, class_token=False, global_pool="avg", fc_norm=False)
    shown = pretrained(str(tmp_path))[0].eval().last_blocks(images, 2)
    assert shown.classes is None
    torch.testing.assert_close(shown.features, shown.patches.mean(1))


def test_convolutional_models_show_no_blocks():
    encoder, expected = pretrained("timm:convnext_atto", weights=False)
    assert not isinstance(encoder, BlockEncoder)
    assert expected == CentralView((224, 224), 256, *IMAGENET, "bicubic")


def test_squeezed_pictures(tmp_path):
    model = saved(tmp_path, **VIT)
    model.pretrained_cfg["crop_mode"] = "squash"
    save_for_hf(model, tmp_path, model_args=VIT, safe_serialization=True)
    assert pretrained(str(tmp_path))[1].resize is None


def test_torchvisions_weights_come_from_its_cache(tmp_path, monkeypatch, images):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    model = torchvision.models.resnet18().eval()
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save(model.state_dict(), cached)
    for name in ("resnet18", "torchvision:resnet18"):
        encoder, expected = pretrained(name)
        assert encoder.eval()(images).equal(model.avgpool(encoder.maps(images)).flatten(1))
        assert encoder.model.conv1.weight.equal(model.conv1.weight)
        assert expected == CentralView((224, 224), 256, *IMAGENET, "bilinear")


def test_without_network_one_line_names_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    for name, file in (
        ("resnet18", "models/resnet18-f37072fd.pth"),
        ("vit_tiny", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/model.safetensors"),
    ):
        with pytest.raises(SslpipeError, match=rf"{file}, are not in the cache") as caught:
            pretrained(name)
        assert "no network" in str(caught.value)
        assert "\n" not in str(caught.value)
    said = capsys.readouterr()  # torch.hub prints; stdout is for the answer, such as JSON
    assert not said.out
    assert said.err.startswith('Downloading: "https://')


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_tinny", "timm:vit_tinny: timm .* has no such model.*did you mean 'vit_tiny'"),
        ("timm:vit_tiny_patch16_224.foo", "no such weights; .*augreg_in21k"),
        ("timm:vit_small_patch16_18x2_224", "timm has no weights of this model"),
        ("torchvision:vit_b_16", "no ResNet of torchvision.*resnet50.*timm:NAME"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(SslpipeError, match=message):
        pretrained(name)


def test_damaged_folders(tmp_path):
    saved(tmp_path, **VIT)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(SslpipeError, match="timm cannot load it"):
        pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SslpipeError, match=r"has config.json, but no model.safetensors"):
        pretrained(str(tmp_path))
    config["pretrained_cfg"]["interpolation"] = "lanczos"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SslpipeError, match="resized by 'lanczos'"):
        pretrained(str(tmp_path), weights=False)


def test_which_names_are_the_libraries():
    assert all(
        map(
            is_library_name, ("timm:x", "torchvision:x", "resnet50", "vit_base", "swin_s3_tiny_224")
        )
    )
    assert not any(map(is_library_name, ("runs/a", "last.pt", "cifar_resnet", "my.module:Thing")))
