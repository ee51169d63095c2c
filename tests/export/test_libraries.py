"""What an export promises, kept by the real libraries in a process that never imports sslpipe."""

import os
import subprocess
import sys

import pytest
import torch

from sslpipe.export import ExportSettings, export_checkpoint

from .saved import DINO, TINY, saved

pytestmark = pytest.mark.slow  # for transformers to be imported
CASES = {  # backbone, side of images, more
    "resnet": ("resnet18", 64, {}),
    "token": (TINY % "", 32, {}),
    "mean": (TINY % ", pool: mean, layer_scale: 0.1", 48, {}),  # 6 x 6 patches
    "sincos": (TINY % ", pos_embed: sincos", 32, {"method": DINO}),
    "convolutional": ("resnet10t", 32, {}),
}
OTHER = 40  # pixels: 5 x 5 patches, so that positions are interpolated
CHILD = """
import sys
from pathlib import Path

import timm
import torch
from transformers import AutoImageProcessor, AutoModel

found = {}
for place in sorted(Path(sys.argv[1]).iterdir()):
    if not place.is_dir():
        continue
    name, images = place.name, torch.load(f"{place}.images")
    model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    wrapped = AutoModel.from_pretrained(place).eval()
    processor = AutoImageProcessor.from_pretrained(place)
    with torch.no_grad():
        found[name] = {
            "timm": [model(x) for x in images],
            "hf": [wrapped(x).pooler_output for x in images],
            "config": {key: config[key] for key in ("input_size", "crop_pct", "mean", "std")},
            "processor": processor.data_config,
        }
    other = timm.create_model(f"local-dir:{place}", pretrained=True, num_classes=5)
    found[name]["head"] = other(images[0])
    assert (place / "torchvision.safetensors").exists() == (name == "resnet")
    if name == "resnet":
        import torchvision
        from safetensors.torch import load_file

        model = torchvision.models.resnet18()
        lacking = model.load_state_dict(load_file(place / "torchvision.safetensors"), strict=False)
        assert lacking == (["fc.weight", "fc.bias"], []), lacking
        model.fc = torch.nn.Identity()
        with torch.no_grad():
            found[name]["torchvision"] = [model.eval()(x) for x in images]
assert not [name for name in sys.modules if name.startswith("sslpipe")]
torch.save(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """By case: what the encoder gives, and what a clean process gets from its exported folder."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("exported")
    ours = {}
    for name, (backbone, side, more) in CASES.items():
        method = saved(runs / name / "last.pt", backbone, side=side, **more)
        formats = ("timm", "hf", "torchvision") if name == "resnet" else ("timm", "hf")
        export_checkpoint(runs / name, out / name, ExportSettings(formats=formats))
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(8, 3, px, px, generator=generator) for px in (side, OTHER)]
        torch.save(images, f"{out / name}.images")
        with torch.no_grad():
            ours[name] = [method.encoder.eval()(x) for x in images]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    here = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", CHILD, out, runs / "found.pt"],
        check=True, capture_output=True, cwd=runs, env=here | offline,
    )  # fmt: skip
    return ours, torch.load(runs / "found.pt")


@pytest.mark.parametrize("library", ["timm", "hf"])
@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_encoder(features, case, library):
    ours, found = features
    for mine, theirs in zip(ours[case], found[case][library], strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)
        assert mine.std(0).max() > 0.005  # images are told apart


def test_torchvision_lacks_the_classifier_alone(features):
    ours, found = features
    for mine, theirs in zip(ours["resnet"], found["resnet"]["torchvision"], strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_preprocessing_is_that_of_the_recipe(features, case):
    said, side = features[1][case], CASES[case][1]
    wanted = {"input_size": [3, side, side], "crop_pct": 1.0}
    wanted |= {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}
    for reader in ("config", "processor"):
        found = {key: said[reader][key] for key in wanted}
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()} == wanted


@pytest.mark.parametrize("case", CASES)
def test_a_classifier_can_be_put_on(features, case):
    assert features[1][case]["head"].shape == (8, 5)
