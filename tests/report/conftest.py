import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sslpipe.encoders import build_encoder
from sslpipe.evaluate import Features
from sslpipe.evaluate.results import Evaluation, Measure
from sslpipe.evaluate.subjects import Subject
from sslpipe.recipe import parse_recipe
from sslpipe.shards.manifest import open_manifest
from sslpipe.shards.read.store import open_store
from tests.view_specs import square

RECIPE = """
stream: {batch_size: 8, seed: 1}
views:
  global:
    count: 2
    ops:
      - RandomResizedCrop: {size: [32, 32], scale: [0.2, 1.0]}
      - Normalize
method: simclr
train:
  backbone: {vit_tiny: {patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3}}
  optimizer: {adamw: {lr: 1.0e-3}}
  epochs: 2
"""


@pytest.fixture(scope="session")
def stored(packed):
    """uids (N,), labels (N,) and class names of the packed set, in its order."""
    manifest = open_manifest(packed)
    store = open_store(manifest)
    tables = [store.index(number).samples for number in range(len(manifest.shards))]
    store.close()
    uids = np.concatenate([table["uid"] for table in tables])
    labels = np.concatenate([table["label"] for table in tables]).astype(np.int64)
    return torch.from_numpy(uids.copy()), torch.from_numpy(labels), manifest.classes


def cloud(labels, width, *, seed, apart=1.5):
    """Features whose classes lie a little apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(int(labels.max()) + 1, width, generator=generator)
    return centres[labels] + torch.randn(len(labels), width, generator=generator)


def subject(name, *, text=RECIPE):
    recipe = parse_recipe(text, path="test.yaml")
    torch.manual_seed(0)
    encoder = build_encoder(recipe.train.backbone, square(32))
    return Subject(str(name), encoder, recipe, "b2:0123", None)


@pytest.fixture(scope="session")
def evaluation(packed, stored, tmp_path_factory):
    """Three encoders of the packed set; a run of two epochs lies beside the checkpoint."""
    uids, labels, classes = stored
    contents = torch.arange(len(uids))
    contents[7] = contents[3]  # of two classes
    run = tmp_path_factory.mktemp("run")
    rows = [
        {"step": s, "epoch": s / 10, "loss": 4.0 - s / 10, "lr": 0.1, "feature_std": 0.1}
        for s in range(1, 21)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = {
        name: Features(cloud(labels, 48, seed=seed), labels, uids, classes, contents)
        for seed, name in enumerate(("trained", "untrained", "pixels"))
    }
    measures = {
        name: (
            Measure("knn top-1", value, "weighted k-NN (k=20)", None, 1 / 3),
            Measure("5-shot", value - 0.0625, "600 episodes", 0.012, 1 / 3),
            Measure("RankMe", 100 * value, "effective rank of 45 features"),
        )
        for name, value in (("trained", 0.8125), ("untrained", 0.4375), ("pixels", 0.375))
    }
    return Evaluation(subject(run / "last.pt"), Path(packed), None, features, measures)


@pytest.fixture
def with_test(evaluation):
    """The same with every third sample as its test set."""
    rows = torch.arange(0, 45, 3)
    tested = {name: features.at(rows) for name, features in evaluation.features.items()}
    bank = {
        name: features.at(torch.arange(45) % 3 > 0)
        for name, features in evaluation.features.items()
    }
    return replace(evaluation, test=evaluation.shards, tested=tested, features=bank)


def renamed(evaluation, classes, **fields):
    """The same with other class names."""
    features = {n: replace(f, classes=classes) for n, f in evaluation.features.items()}
    return replace(evaluation, features=features, **fields)
