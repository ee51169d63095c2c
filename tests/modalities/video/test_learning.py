"""A run on clips from end to end: trained, loaded again, evaluated beside its baselines."""

import pytest

from sslpipe.evaluate import EvalSettings, evaluate
from sslpipe.recipe import parse_recipe
from sslpipe.train.loop import train_recipe

MAE = """
method:
  mae:
    {decoder_dim: 16, decoder_depth: 1, decoder_heads: 2, norm_pix: channel, decoder_mask: decoder}
train:
  backbone:
    vit_tiny: {patch_size: [2, 8, 8], embed_dim: 24, depth: 1, num_heads: 2, pos_embed: sincos}
"""
SIMCLR = """
method: {simclr: {projector: [16, 8]}}
train:
  backbone: {r3d_18: {width: 4, blocks: [1, 1, 1, 1]}}
"""
COMMON = """
  optimizer: {adamw: {lr: 1.0e-3}}
  epochs: 1
  precision: fp32
modality: video
stream: {batch_size: 8}
views:
  global:
    count: 2
    ops:
      - IntervalClips: {frames: 4, stride: 3}
      - RandomResizedCrop: {size: [32, 32], scale: [0.5, 1.0]}
      - Normalize
masks:
  random: {patch_size: [2, 8, 8], sampler: {tube: {ratio: 0.75}}}
  decoder: {patch_size: [2, 8, 8], sampler: running_cell}
run: {workers: 0}
"""


@pytest.mark.parametrize("method", [MAE, SIMCLR], ids=["mae", "simclr"])
def test_a_run_on_clips_is_trained_and_evaluated(method, videos, tmp_path):
    recipe = parse_recipe(method + COMMON, path="clips.yaml")
    result = train_recipe(
        recipe, shards=videos, out=tmp_path / "run", resume=False, max_steps=None, device="cpu"
    )
    assert result.steps == 3
    found = evaluate(tmp_path / "run", videos, settings=EvalSettings(("knn",), device="cpu"))
    assert set(found.measures) == {"trained", "untrained", "frame"}
    for measured in found.measures.values():
        assert all(0 <= measure.value <= 1 for measure in measured)
