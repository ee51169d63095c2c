import dataclasses

import pytest
import torch

from sslpipe.encoders import build_encoder
from sslpipe.errors import ContractError
from sslpipe.methods import autoencoder
from sslpipe.methods.parts import feature_maps
from sslpipe.recipe.names import Entry
from tests.view_specs import square

from . import masked

SMALL = {"bottleneck": 4, "hidden": 8}
CIFAR = {"width": 8, "blocks": [1, 1, 1, 1]}


def encoder_of(name, **settings):
    torch.manual_seed(0)
    return build_encoder(Entry(name, settings), square(16))


def test_loss_is_the_squared_error_of_the_full_image(rand):
    pred, images = rand(2, 3, 4, 4), rand(2, 3, 4, 4)
    pairs = zip(pred.flatten().tolist(), images.flatten().tolist(), strict=True)
    expected = sum((x - y) ** 2 for x, y in pairs) / (2 * 3 * 4 * 4)
    assert autoencoder.autoencoder_loss(pred, images).item() == pytest.approx(expected)
    half = autoencoder.autoencoder_loss(pred.bfloat16(), images.bfloat16())
    assert half.dtype == torch.float32


def test_noise_and_loss_of_pixels_are_as_strong_as_said(rand):
    torch.manual_seed(0)
    images = rand(8, 3, 64, 64)
    assert autoencoder.corrupt(images, noise=0.0, drop=0.0).equal(images)
    noisy = autoencoder.corrupt(images, noise=0.3, drop=0.0) - images
    assert noisy.std().item() == pytest.approx(0.3, rel=0.02)
    assert noisy.mean().abs() < 0.01
    dropped = autoencoder.corrupt(images, noise=0.0, drop=0.25)
    gone = dropped == 0
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert gone[:, 0].equal(gone[:, 2])  # whole pixels
    assert dropped[~gone].equal(images[~gone])
    assert not gone[0].equal(gone[1])


def test_the_target_is_the_clean_image():
    method = autoencoder.Autoencoder(masked.vit(), masked.spec_of(4), noise=0.5, drop=0.5, **SMALL)
    seen = []
    method.decoder.register_forward_hook(lambda _, args, out: seen.append(out.detach()))
    batch = masked.batch_of()
    images = batch.views["global"][0]
    output = method(batch)
    expected = (seen[0] - images).square().mean().item()
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    share = expected / images.var(0, correction=0).mean().item()
    assert output.metrics["unexplained"].item() == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("resnet18", {}, (512, 1, 1)),
        ("resnet18", {"stem": "cifar"}, (512, 2, 2)),
        ("cifar_resnet", CIFAR, (64, 2, 2)),
        ("vit_tiny", masked.VIT, (24, 4, 4)),
        ("convnext_atto", {}, (320, 1, 1)),
    ],
)
def test_every_backbone_with_maps_can_be_used(name, settings, shape):
    encoder, batch = encoder_of(name, **settings), masked.batch_of(size=2)
    spec = masked.spec_of(2)
    if shape[1:] == (1, 1):  # 32 px, the stride of these
        batch = dataclasses.replace(batch, views={"global": torch.randn(1, 2, 3, 32, 32)})
        view = dataclasses.replace(spec.views["global"], shape=(3, 32, 32))
        spec = dataclasses.replace(spec, views={"global": view})
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = feature_maps.map_shape("autoencoder", encoder, spec.views["global"])
    assert found == shape
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())
    assert encoder.training
    method = autoencoder.Autoencoder(encoder, spec, **SMALL)
    assert method(batch).loss.isfinite()


def test_what_has_no_maps_or_does_not_tile_is_named(encoder):
    spec = masked.spec_of(4)
    with pytest.raises(ContractError, match=r"autoencoder needs an encoder with maps.*TinyEncoder"):
        autoencoder.Autoencoder(encoder, spec)
    swin = build_encoder(Entry("swin_tiny_patch4_window7_224"), square(224))
    view = dataclasses.replace(spec.views["global"], shape=(3, 224, 224))
    with pytest.raises(ContractError, match=r"gives \(1, 7, 7, 768\)"):
        feature_maps.map_shape("autoencoder", swin, view)
    odd = dataclasses.replace(spec.views["global"], shape=(3, 33, 33))
    odd_spec = dataclasses.replace(spec, views={"global": odd})
    resnet = encoder_of("resnet18")
    with pytest.raises(ContractError, match="2 x 2 do not tile a view of 33 x 33"):
        autoencoder.Autoencoder(resnet, odd_spec)
    grey = dataclasses.replace(spec.views["global"], shape=(1, 16, 16))
    with pytest.raises(ContractError, match=r"ResNet does not take views of 1 x 16 x 16 \(.*views"):
        feature_maps.map_shape("colorization", resnet, grey)
