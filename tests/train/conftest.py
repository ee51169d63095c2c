import importlib.util
import sys
from pathlib import Path

import pytest

TINY_MAE = """
stream: {batch_size: 8, seed: 5}
views:
  global: {count: 2, ops: [RandomResizedCrop: {size: [16, 16]}, Normalize]}
masks: {random: {view: global, patch_size: 4, sampler: random}}
method: {mae: {decoder_dim: 16, decoder_depth: 1, decoder_heads: 2}}
train:
  backbone: {vit_tiny: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}
  optimizer: {adamw: {lr: 1e-3}}
  epochs: 3
run: {workers: 0, prefetch: 0, threads: 1}
"""


@pytest.fixture(scope="session")
def toy():
    """tests/train/toy.py as the importable module `toy`."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module
    spec.loader.exec_module(module)
    return module
