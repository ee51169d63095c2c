"""Encoders of waveforms as folders of transformers, loaded by it, and taken back by `--from`."""

import pytest
import torch

from sslpipe.batch import BatchSpec, MaskSpec, TargetSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.errors import SslpipeError
from sslpipe.export import ExportSettings, export_checkpoint, wave_folder
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.sections import recipe_text
from sslpipe.train import initial_method
from sslpipe.train.checkpoint import Checkpoint, view_record, write_checkpoint
from sslpipe.train.warm_start import fill, read_weights

SAMPLES, FRAMES, HIDDEN = 2_000, 24, 11
SIZES = """dim: 32, depth: 2, heads: 4, conv_dim: 8, kernels: [10, 3, 3, 3, 3],
      strides: [5, 2, 2, 2, 2], position_kernel: 8, position_groups: 4"""
RECIPE = """
modality: audio
stream: {{batch_size: 4}}
views: {{wave: {{ops: [Crop: {{samples: 2000, rate: 8000}}{ops}]}}}}
masks: {{spans: {{view: wave, patch_size: 80, receptive_field: 160, sampler: spans}}}}
method: {method}
train: {{backbone: {{wav2vec2: {{{sizes}}}}}, optimizer: {{adamw: {{lr: 0.1}}}}, epochs: 1}}
"""
VIEW = ViewSpec("wave", 1, "T", (SAMPLES,))
CASES = {  # method, ops, norm of the convolutions
    "wav2vec2": ("{wav2vec2: {entries: 4, dim: 8, code_dim: 8}}", "", "group"),
    "hubert": ("{hubert: {dim: 8}}", ", Standardize", "layer"),
}


def saved(path, case):
    """A checkpoint with weights that no initialisation draws, and the method."""
    method, ops, norm = CASES[case]
    sizes = f"{SIZES}, conv_norm: {norm}"
    recipe = parse_recipe(RECIPE.format(method=method, ops=ops, sizes=sizes))
    masks = {"spans": MaskSpec("wave", 1, "T", (80,), (FRAMES,), HIDDEN)}
    targets = {
        "distractors": TargetSpec("wave", 1, HIDDEN, (HIDDEN, 3)),
        "frame_labels": TargetSpec("wave", 1, 5, (FRAMES,)),
    }
    made = initial_method(recipe, BatchSpec(4, 4, {"wave": VIEW}, masks, targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in made.encoder.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    content = Checkpoint(
        recipe=recipe_text(recipe), fingerprint=recipe.fingerprint, view=view_record(VIEW), step=7,
        stream={"manifest": "b2:data", "recipe": "b2:1 "}, encoder=made.encoder.state_dict(),
        method=made.state_dict(), optimizer={}, scaler={}, torch="2",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, content)
    return made.eval()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_auto_model_gives_the_states(case, tmp_path):
    from transformers import AutoFeatureExtractor, AutoModel

    method = saved(tmp_path / "run" / "last.pt", case)
    found = export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert (found.formats, found.unchecked, dict(found.obstacles)) == (("hf",), (), {})
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert model.config.model_type == case
    encoder, generator = method.encoder, torch.Generator().manual_seed(0)
    sounds = [torch.rand(n, generator=generator) - 0.5 for n in (SAMPLES, 1_300)]
    extract = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    batch = extract(
        [sound.numpy() for sound in sounds], sampling_rate=8_000, padding=True, return_tensors="pt"
    )
    waves = torch.zeros(2, SAMPLES)
    for row, sound in zip(waves, sounds, strict=True):
        standard = (sound - sound.mean()) / (sound.var(correction=0) + 1e-5).sqrt()
        row[: len(sound)] = standard if case == "hubert" else sound
    torch.testing.assert_close(batch["input_values"], waves, rtol=0, atol=2e-4)
    real = encoder.real_frames(torch.tensor([SAMPLES, 1_300]), FRAMES)
    expected = encoder.context(encoder.normed(encoder.features(waves)), real_BN=real)
    states = model(waves, attention_mask=batch["attention_mask"]).last_hidden_state
    torch.testing.assert_close(states[real], expected[real], rtol=0, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"method `{case}`, after 7 steps of 4 waveforms of 2,000 samples" in card
    assert "sampling_rate=8000" in card

    recipe = parse_recipe((tmp_path / "out" / "recipe.yaml").read_text())
    fresh = build_encoder(recipe.train.backbone, VIEW)
    fill(fresh, read_weights(tmp_path / "out"))
    torch.testing.assert_close(fresh.eval()(waves), encoder(waves), rtol=0, atol=1e-6)


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    saved(tmp_path / "run" / "last.pt", "hubert")
    with pytest.raises(SslpipeError, match="not as onnx: it is an encoder of waveforms"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", ExportSettings(("onnx",)))
    config = wave_folder.config_of_waves

    def wrong(trained):
        return {**config(trained), "num_attention_heads": 2}

    monkeypatch.setattr(wave_folder, "config_of_waves", wrong)
    with pytest.raises(SslpipeError, match=r"in transformers .* its features differ"):
        export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
