"""Whatever a user names is an encoder, the pictures it is shown, and a digest of its weights."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.models import save_for_hf

from sslpipe.encoders.central_view import CentralView
from sslpipe.errors import SslpipeError, StateError
from sslpipe.evaluate import extract
from sslpipe.evaluate.features import central, central_batches
from sslpipe.evaluate.subjects import open_subject, recipe_of
from sslpipe.pipeline import load
from sslpipe.recipe import parse_recipe
from sslpipe.train import initial_method
from sslpipe.train.checkpoint import read_checkpoint, weights_digest, write_checkpoint
from sslpipe.train.loop import train_recipe

RECIPE = """\
modality: image
stream: {batch_size: 8, seed: 3}
views:
  global:
    count: 2
    ops:
      - RandomResizedCrop: {size: [16, 16]}
      - Normalize
method: METHOD
train:
  epochs: 1
  backbone: {vit_tiny: {embed_dim: 24, depth: 2, num_heads: 2, patch_size: 8}}
  optimizer: {adamw: {lr: 0.1}}
run: {workers: 0}
"""
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}


def trained(folder, packed, method):
    recipe = parse_recipe(RECIPE.replace("METHOD", method), path="r.yaml")
    train_recipe(recipe, shards=packed, out=folder, resume=False, max_steps=1, device="cpu")
    return recipe


@pytest.mark.parametrize("method", ["simclr", "moco_v3", "dino"])
def test_a_run_before_and_after_training(tmp_path, packed, method):
    recipe = trained(tmp_path / "run", packed, method)
    by_folder, by_file = (
        open_subject(p) for p in (tmp_path / "run", str(tmp_path / "run/last.pt"))
    )
    stored = read_checkpoint(tmp_path / "run" / "last.pt").encoder
    state = by_folder.encoder.state_dict()
    assert all(state[key].equal(tensor) for key, tensor in stored.items())
    assert by_folder.digest == by_file.digest == weights_digest(by_folder.encoder.state_dict())
    before = torch.get_rng_state()
    untrained = by_folder.untrained()
    assert torch.get_rng_state().equal(before)
    with load(recipe, shards=packed, device="cpu") as pipe:
        first = initial_method(recipe, pipe.spec).encoder  # as the trainer makes it
    assert (
        weights_digest(untrained.state_dict())
        == weights_digest(first.state_dict())
        != by_folder.digest
    )
    assert central(by_folder.recipe).data_fingerprint == central(recipe).data_fingerprint


def test_the_digest_sees_names_types_shapes_and_bytes():
    module = torch.nn.Linear(4, 2)
    digests = [weights_digest(module.state_dict())]
    digests.append(weights_digest(torch.nn.Sequential(module).state_dict()))
    module.weight.data[1, 2] += 2**-20
    digests.append(weights_digest(module.state_dict()))
    module.weight.data = module.weight.data.reshape(2, 2, 2)
    digests.append(weights_digest(module.state_dict()))
    digests.append(weights_digest(module.bfloat16().state_dict()))
    assert len({*digests}) == 5
    assert weights_digest(module.state_dict()) == digests[-1]
    assert all(digest.startswith("b2:") for digest in digests)


def saved(folder):
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT).eval()
    model.pretrained_cfg.update(input_size=(3, 32, 32), crop_pct=0.5, interpolation="bilinear")
    save_for_hf(model, folder, model_args=VIT, safe_serialization=True)
    return model


def test_an_exported_folder_is_shown_its_own_pictures(tmp_path, packed):
    model = saved(tmp_path)
    subject = open_subject(tmp_path)
    crop, normalize = central(subject.recipe).views["global"].ops
    assert (crop.name, dict(crop.settings)) == (
        "CenterCrop",
        {"size": [32, 32], "resize": 64, "resample": "bilinear"},
    )
    assert normalize.settings == {"mean": [0.5] * 3, "std": [0.5] * 3}
    with central_batches(subject.recipe, shards=packed, device="cpu") as batches:
        found = extract(subject.encoder, batches, "cpu")
    with load(central(subject.recipe), shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        (batch,) = pipe
    images = batch.views["global"][0]
    assert images.amin() < -0.5  # normalised
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert found.features.equal(features)
    assert found.blocks.shape == (45, 2, 24)
    fresh = [weights_digest((subject.untrained()).state_dict()) for _ in range(2)]
    assert fresh[0] == fresh[1] != subject.digest


def test_squeezed_pictures_are_not_cropped():
    expected = CentralView((32, 32), None, (0.5,) * 3, (0.5,) * 3, "bicubic")
    crop = central(recipe_of("x", expected)).views["global"].ops[0]
    assert (crop.name, crop.settings["size"]) == ("Resize", [32, 32])


def test_names_that_mean_nothing(tmp_path):
    with pytest.raises(SslpipeError, match=r"gone.pt: there is no such file, folder or model"):
        open_subject("gone.pt")
    with pytest.raises(SslpipeError, match=r"holds neither last.pt nor config.json"):
        open_subject(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(StateError, match=r"damaged|sslpipe did not write it"):
        open_subject(tmp_path)
    with pytest.raises(SslpipeError, match="no such model"):
        open_subject("timm:nothing")


def test_a_checkpoint_of_another_backbone_is_one_line(tmp_path, packed):
    trained(tmp_path, packed, "simclr")
    path = tmp_path / "last.pt"
    found = read_checkpoint(path)
    other = replace(found, recipe=found.recipe.replace("embed_dim: 24", "embed_dim: 48"))
    write_checkpoint(path, other)
    with pytest.raises(StateError, match="its encoder is not the backbone 'vit_tiny'") as caught:
        open_subject(path)
    assert "\n" not in str(caught.value)
