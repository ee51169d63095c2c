"""Does the alarm of a run go off? Methods broken in ways that are known to collapse, and whole ones.

    python tools/collapse.py --train cifar/train [byol simclr ...] [--epochs 8] [--device cpu]
                             [--set train.precision=fp32]

Each METHOD trains by its recipe METHOD_cifar, with a narrow backbone, batches of 128 and epochs of
2,000 images, warm-up included in the first one: as it is, then broken. A line says when the first
alarm came, the monitors at the ends of epochs 1, 2, 3 and of the last, and the alarms in full. The
exit status is 1 if a whole method is alarmed about or a broken one is not, unless it is known to
hold (KNOWN). Numbers of every step: OUT/VARIANT/metrics.jsonl.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from provenance import row
from torch import nn

import sslpipe
from sslpipe.lookup import Entry
from sslpipe.methods import METHODS, Output
from sslpipe.methods.byol import BYOL
from sslpipe.methods.simclr import monitors
from sslpipe.methods.simsiam import SimSiam
from sslpipe.recipe import Recipe, find_recipe, load_recipe
from sslpipe.train import build_method, train
from sslpipe.train.log import rows_until

SHOWN = ("loss", "feature_rankme", "feature_std", "embedding_std", "mean_entropy", "teacher_entropy")
RESNET = "{cifar_resnet: {width: 16, blocks: [1, 1, 1, 1]}}"
VIT = "{vit_tiny: {patch_size: 4, embed_dim: 96, depth: 4, num_heads: 3}}"


class TargetTakesGradients(BYOL):
    """BYOL without stop-gradient: the target is the online network itself, as it is learning."""

    def forward(self, batch):
        z1_BD, z2_BD = (self.online(view_BCHW) for view_BCHW in batch.views["global"][:2])
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = 4 - 2 * (similarity(p1_BD, z2_BD) + similarity(p2_BD, z1_BD))
        return Output(loss, monitors(p1_BD, p2_BD))


class BothSidesLearn(SimSiam):
    """SimSiam without stop-gradient."""

    def forward(self, batch):
        views = batch.views["global"][:2]
        z1_BD, z2_BD = (self.projector(self.encoder(view_BCHW)) for view_BCHW in views)
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = -(similarity(p1_BD, z2_BD) + similarity(p2_BD, z1_BD)) / 2
        return Output(loss, monitors(z1_BD, z2_BD))


def similarity(p_BD, z_BD):
    """Mean cosine, with gradients on both sides."""
    return F.cosine_similarity(p_BD.float(), z_BD.float(), dim=1).mean()


class Identity(nn.Module):
    """No predictor; its one weight, without effect, is what the optimizer of SimSiam looks for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return z + 0 * self.weight


def without_predictor(method):
    method.predictor = Identity()
    return method


class Variant(NamedTuple):
    """A method of the field, as it is or broken by settings, by a class or afterwards."""

    method: str
    settings: Mapping[str, Any] = MappingProxyType({})
    made: Any = None
    broken: Any = None


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "byol": Variant("byol"),
        "byol, no stop-gradient": Variant("byol", made=TargetTakesGradients),
        "byol, no predictor": Variant("byol", broken=without_predictor),
        "simsiam": Variant("simsiam"),
        "simsiam, no stop-gradient": Variant("simsiam", made=BothSidesLearn),
        "simsiam, no predictor": Variant("simsiam", broken=without_predictor),
        "vicreg": Variant("vicreg"),
        "vicreg, weights 100 / 100 / 1": Variant("vicreg", dict(invariance=100.0, variance=100.0)),
        "vicreg, weights 100 / 100 / 0": Variant("vicreg", dict(invariance=100.0, variance=100.0, covariance=0.0)),
        "vicreg, weights 100 / 1 / 0": Variant("vicreg", dict(invariance=100.0, variance=1.0, covariance=0.0)),
        "simclr": Variant("simclr"),
        "simclr, temperature 10": Variant("simclr", dict(temperature=10.0)),
        "dino": Variant("dino"),
        "dino, no centring": Variant("dino", dict(center_momentum=1.0)),
        "dino, teacher temperature 1": Variant("dino", dict(teacher_temperature=(1.0, 1.0))),
    }
)


def recipe_of(name, options) -> Recipe:
    sets = [
        "stream.batch_size=128", "stream.epoch_samples=2000", "stream.remainder=wrap",
        f"train.backbone={VIT if name == 'dino' else RESNET}", f"train.epochs={options.epochs}",
        "train.warmup_epochs=1", "run.threads=1",
    ]  # fmt: skip
    return load_recipe(find_recipe(f"{name}_cifar"), overrides=[*sets, *options.sets])


def run(label, variant, options):
    recipe = recipe_of(variant.method, options)
    settings = {**recipe.method.settings, **variant.settings}
    recipe = recipe.model_copy(update={"method": Entry(variant.method, settings)})
    with sslpipe.load(recipe, shards=options.train, device=options.device) as pipe:
        built = recipe
        if variant.made:
            import types
            sys.modules.setdefault("collapse", sys.modules[__name__])
            built = recipe.model_copy(update={"method": Entry(f"collapse:{variant.made.__name__}", settings)})
        method = build_method(built, pipe.spec)
        if variant.broken: method = variant.broken(method)
        out = options.out / label.replace(" ", "_").replace("/", "-")
        result = train(pipe, method, recipe.train, out=out)
        return result.alarms, rows_until(out / "metrics.jsonl", 2**62)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("methods", nargs="*")
    options.add_argument("--train", type=Path, required=True)
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--out", type=Path)
    options.add_argument("--device", default="cpu")
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    import time
    for label, variant in VARIANTS.items():
        if chosen.methods and not any(label.startswith(m) for m in chosen.methods): continue
        t = time.time()
        alarms, rows = run(label, variant, chosen)
        print(f"== {label}  {time.time()-t:.0f} s")
        for r in rows:
            if "feature_rankme" in r:
                print("   ", f"{r['epoch']:.2f}", {k: float(f"{r[k]:.4g}") for k in (*SHOWN, "invariance", "variance", "covariance") if k in r})
        for a in alarms: print("   !!", a)
        sys.stdout.flush()

main()
