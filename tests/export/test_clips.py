"""Encoders of clips in other libraries: features as theirs, names as published checkpoints have."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sslpipe.batch import BatchSpec, ViewSpec
from sslpipe.errors import SslpipeError
from sslpipe.export import ExportSettings, export_checkpoint
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.sections import recipe_text
from sslpipe.train import initial_method
from sslpipe.train.checkpoint import Checkpoint, view_record, write_checkpoint

RECIPE = """
modality: video
stream: {{batch_size: 8}}
views:
  global:
    count: 2
    ops:
      - DenseClip: {{frames: 4, stride: 3}}
      - RandomResizedCrop: {{size: [16, {width}]}}
      - Normalize: {{mean: [0.4, 0.4, 0.4], std: [0.2, 0.2, 0.2]}}
method: {{simclr: {{projector: [16, 8]}}}}
train: {{backbone: {backbone}, optimizer: {{sgd: {{lr: 0.1}}}}, epochs: 1}}
"""
SMALL = "patch_size: %s, embed_dim: 24, depth: 2, num_heads: 3%s"
VIT = "{vit_tiny: {%s}}" % (SMALL % ("[2, 4, 4]", "%s"))
DIVIDED = "{timesformer: {%s}}" % (SMALL % ("4", ""))
WEIGHTS = ExportSettings(formats=("hf",))


def saved(folder, backbone, width=16):
    """A checkpoint of weights and statistics that no initialisation draws; its encoder."""
    recipe = parse_recipe(RECIPE.format(backbone=backbone, width=width))
    view = ViewSpec("global", 2, "CTHW", (3, 4, 16, width))
    method = initial_method(recipe, BatchSpec(8, 8, {"global": view}, {}, {}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in method.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim < 4:
                tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator))
    content = Checkpoint(
        recipe=recipe_text(recipe), fingerprint=recipe.fingerprint, view=view_record(view), step=7,
        stream={"manifest": "b2:data"}, encoder=method.encoder.state_dict(),
        method=method.state_dict(), optimizer={}, scaler={}, torch="2", start=None,
    )  # fmt: skip
    write_checkpoint(folder / "last.pt", content)
    return method.encoder.eval()


@pytest.mark.parametrize(
    ("backbone", "pooled"),
    [
        (VIT % ", pool: mean, pos_embed: sincos", lambda hidden: hidden[:, 1:].mean(1)),
        (VIT % "", lambda hidden: hidden[:, 0]),
        (DIVIDED, lambda hidden: hidden[:, 0]),
    ],
)
def test_transformers_gives_the_same_features(tmp_path, backbone, pooled):
    encoder = saved(tmp_path, backbone)
    made = export_checkpoint(tmp_path, tmp_path / "out", WEIGHTS)
    assert (made.formats, made.unchecked) == (("hf",), ())
    import transformers

    model = transformers.AutoModel.from_pretrained(tmp_path / "out/transformers").eval()
    clips_BCTHW = torch.randn(3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        theirs = pooled(model(clips_BCTHW.transpose(1, 2)).last_hidden_state)
        ours = encoder(clips_BCTHW)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (ours.std(0) > 1e-3).all()  # clips differ
    state = load_file(tmp_path / "out/model.safetensors")
    assert set(state) == set(encoder.model.state_dict())
    card = (tmp_path / "out/README.md").read_text()
    assert "4 frames about the middle of a video, 3 from one to the next" in card
    assert json.loads((tmp_path / "out/preprocessing.json").read_text())["frames"] == 4


def test_a_graph_takes_any_number_of_clips(tmp_path):
    saved(tmp_path, VIT % "")  # compared on a batch of another size than it was made with
    made = export_checkpoint(tmp_path, tmp_path / "out", ExportSettings(formats=("onnx",)))
    assert (made.formats, made.unchecked) == (("onnx",), ())


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18"])
def test_torchvision_gives_the_same_features(tmp_path, name):
    encoder = saved(tmp_path, name)
    made = export_checkpoint(tmp_path, tmp_path / "out", ExportSettings(formats=("torchvision",)))
    assert made.formats == ("torchvision",)
    import torchvision

    model = getattr(torchvision.models.video, name)()
    lacking = model.load_state_dict(load_file(tmp_path / "out/torchvision.safetensors"), False)
    assert lacking.missing_keys == ["fc.weight", "fc.bias"]
    model.fc = torch.nn.Identity()
    clips = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(clips), encoder(clips), rtol=1e-5, atol=1e-5)


REFUSED = {
    "timm": (VIT % "", 16, "timm has no models of clips"),
    "torchvision": (VIT % "", 16, "torchvision has no model like ClipViT"),
    "hf": ("{r3d_18: {width: 4, blocks: [1, 1, 1, 1]}}", 16, "transformers has no 3-D ResNet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_library_has_is_refused_with_the_reason(tmp_path, name):
    backbone, width, said = REFUSED[name]
    saved(tmp_path, backbone, width)
    with pytest.raises(SslpipeError, match=said):
        export_checkpoint(tmp_path, tmp_path / "out", ExportSettings(formats=(name,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("backbone", "width", "said"),
    [
        (VIT % "", 32, "square frames alone"),
        (VIT % ", layer_scale: 0.1", 16, "no layer scale"),
    ],
)
def test_models_that_differ_are_refused(tmp_path, backbone, width, said):
    saved(tmp_path, backbone, width)
    with pytest.raises(SslpipeError, match=said):
        export_checkpoint(tmp_path, tmp_path / "out", WEIGHTS)
