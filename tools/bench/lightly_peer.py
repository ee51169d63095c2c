"""Do our methods learn what lightly's do? The same network, first weights, images and rates.

    python tools/bench/lightly_peer.py simclr byol --epochs 4 --train cifar/train --test cifar/test
                                  [--small] [--out learning] [--set stream.batch_size=128]

Ours is the recipe METHOD_cifar as in learning.py, whose results in OUT are taken where they
exist. Theirs: lightly's transforms (PIL), heads, loss and teacher in a plain loop over the same
images, with the recipe's batch size, optimizer and schedule. Both encoders are judged alike.
Differences of 0.02 are noise with 2,000 test images. METHOD: barlow_twins, byol, simclr, vicreg;
all of them unless named.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import webdataset
from learning import Numbers, accuracies, remembered, result_of, shown
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import SimCLRTransform
from lightly.transforms.byol_transform import BYOLView1Transform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.utils.scheduler import cosine_schedule
from PIL.Image import Image
from provenance import row
from rich.console import Console
from rich.progress import track
from rich.table import Table
from short_recipes import shortened, small
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sslpipe.evaluate.subjects import first_encoder
from sslpipe.recipe import Recipe, find_recipe, load_recipe
from sslpipe.train import optimizers
from sslpipe.train.run import lr_scale, move_module, plan_of

HEAD = ("method", "epochs", "k-NN", "lightly", "untrained", "linear", "lightly", "untrained")
KEYS = ("knn", "linear")
COLOURS = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.243, 0.261]}
Views = Callable[[Image], list[Tensor]]


class TwoViews(nn.Module):
    """SimCLR, Barlow Twins, VICReg: one network, and a loss of the embeddings of two views."""

    def __init__(self, encoder: nn.Module, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(encoder, head)
        self.loss = loss

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        return [self.network(view) for view in views]

    def loss_of(self, embeddings: list[Tensor]) -> Tensor:
        return self.loss(*embeddings)

    def after_step(self, progress: float) -> None:
        """Nothing."""


class BYOL(nn.Module):
    """As lightly's example; its loss times four is the paper's, which the recipe's rate is for."""

    def __init__(self, encoder: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, out = settings["projector"]
        projector = heads.BYOLProjectionHead(encoder.dim, hidden, out)
        self.online = nn.Sequential(encoder, projector)
        self.predictor = heads.BYOLPredictionHead(out, settings["predictor_hidden"], out)
        self.target = copy.deepcopy(self.online)
        deactivate_requires_grad(self.target)
        self.momentum = settings["momentum"]
        self.loss = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            targets = [self.target(view) for view in views]
        return [self.predictor(self.online(view)) for view in views] + targets

    def loss_of(self, embeddings: list[Tensor]) -> Tensor:
        p1, p2, z1, z2 = embeddings
        return 4 * 0.5 * (self.loss(p1, z2) + self.loss(p2, z1))

    def after_step(self, progress: float) -> None:
        momentum = cosine_schedule(round(1e6 * progress), 1_000_001, self.momentum, 1.0)
        update_momentum(self.online, self.target, momentum)


def simclr(encoder: nn.Module, settings: Mapping[str, Any]) -> tuple[nn.Module, Views]:
    head = heads.SimCLRProjectionHead(encoder.dim, *settings["projector"])
    views = SimCLRTransform(32, cj_strength=0.5, gaussian_blur=0.0, normalize=None)
    return TwoViews(encoder, head, NTXentLoss(settings["temperature"])), views


def barlow_twins(encoder: nn.Module, settings: Mapping[str, Any]) -> tuple[nn.Module, Views]:
    hidden, _, out = settings["projector"]
    head = heads.BarlowTwinsProjectionHead(encoder.dim, hidden, out)
    return TwoViews(encoder, head, BarlowTwinsLoss(settings["redundancy"])), asymmetric()


def vicreg(encoder: nn.Module, settings: Mapping[str, Any]) -> tuple[nn.Module, Views]:
    hidden, _, out = settings["projector"]
    head = heads.VICRegProjectionHead(encoder.dim, hidden, out, num_layers=3)
    views = [view(min_scale=0.2, solarize=0.1)] * 2
    return TwoViews(encoder, head, VICRegLoss()), MultiViewTransform(views)


def byol(encoder: nn.Module, settings: Mapping[str, Any]) -> tuple[nn.Module, Views]:
    return BYOL(encoder, settings), asymmetric()


def asymmetric() -> Views:
    """BYOL's views without blur."""
    return MultiViewTransform([view(), view(solarize=0.2)])


def view(*, min_scale: float = 0.08, solarize: float = 0.0) -> Callable[[Image], Tensor]:
    return BYOLView1Transform(
        32, min_scale=min_scale, gaussian_blur=0.0, solarization_prob=solarize, normalize=COLOURS
    )


PEERS: Mapping[str, Callable[[nn.Module, Mapping[str, Any]], tuple[nn.Module, Views]]] = (
    MappingProxyType(
        {"barlow_twins": barlow_twins, "byol": byol, "simclr": simclr, "vicreg": vicreg}
    )
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("methods", nargs="*")
    options.add_argument("--epochs", type=int, required=True)
    options.add_argument("--train", type=Path, required=True)
    options.add_argument("--test", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("learning"))
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--small", action="store_true")
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args(namespace=argparse.Namespace(finetune=False))
    table, figures = Table(*HEAD), []
    for name in chosen.methods or PEERS:
        ours = result_of(name, chosen)
        theirs = remembered(chosen.out / name / "lightly.json", partial(lightly, name, chosen))
        cells = [shown(n) for k in KEYS for n in (ours[k], theirs[k], ours[f"untrained_{k}"])]
        table.add_row(name, str(ours["epochs"]), *cells)
        figures.append(f"{name} {cells[0]} and {cells[1]}, linear {cells[3]} and {cells[4]}")
    Console(width=120).print(table)
    print(row(f"k-NN, ours and lightly's: {'; '.join(figures)}", "lightly", "timm"))


def lightly(name: str, chosen: argparse.Namespace) -> Numbers:
    """Pretrain with lightly and judge the encoder."""
    recipe = load_recipe(find_recipe(f"{name}_cifar"), overrides=chosen.sets)
    recipe = shortened(small(recipe) if chosen.small else recipe, chosen.epochs)
    encoder = first_encoder(recipe)
    torch.manual_seed(recipe.stream.seed)
    module, views = PEERS[name](encoder, recipe.method.settings)
    pretrain(module, loader(views, recipe, chosen.train), recipe, torch.device(chosen.device))
    return {"epochs": chosen.epochs, "sets": chosen.sets, **accuracies(encoder, recipe, chosen)}


def loader(views: Views, recipe: Recipe, shards: Path) -> DataLoader:
    """Batches of views of all images, decoded once, in a new order every epoch."""
    tars = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    images = [next(v for v in s.values() if isinstance(v, Image)) for s in samples]
    size = recipe.stream.batch_size
    return DataLoader(
        images, size, shuffle=True, drop_last=True, collate_fn=lambda batch: joined(batch, views)
    )


def joined(images: Iterable[Image], views: Views) -> list[Tensor]:
    """The first views of all images, and the second."""
    return [torch.stack(view) for view in zip(*map(views, images), strict=True)]


def pretrain(module: nn.Module, batches: DataLoader, recipe: Recipe, device: torch.device) -> None:
    """A plain loop; rates and precision as in ours."""
    move_module(module.train(), device)
    settings = recipe.train
    scale = lr_scale(settings, recipe.stream.batch_size)
    optimizer = optimizers.build_optimizer(settings.optimizer, module, scale=scale)
    plan = plan_of(settings, len(batches), optimizer)
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    steps = track(itertools.islice(endless, plan.total), "lightly", plan.total)
    for step, views in enumerate(steps):
        optimizers.set_rates(
            optimizer, lr=plan.lr_at(step), weight_decay=plan.weight_decay_at(step)
        )
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision != "fp32"):
            embeddings = module([view.to(device) for view in views])
        module.loss_of([z.float() for z in embeddings]).backward()
        optimizer.step()
        module.after_step((step + 1) / plan.total)


if __name__ == "__main__":
    main()
