"""Does the alarm go off? Methods broken in ways that are known to collapse, beside whole ones.

    python tools/bench/collapse.py --train cifar/train [byol "simclr, temperature 10"] [--epochs 5]
                             [--out collapse] [--device cpu] [--set train.precision=fp32]

Every VARIANT trains by its CIFAR recipe with a narrow backbone, batches of 128 and epochs of 2,000
images (10,000 where the collapse is slow: SimSiam, no predictor), the first of them the warm-up;
names choose all variants that begin with them. Shown: the first alarm, and what was logged at the
ends of epochs; OUT/VARIANT/metrics.jsonl has the rest. The exit status is 1 if an alarm is false,
missing or names another cause.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from provenance import row
from torch import Tensor, nn

import sslpipe
from sslpipe.methods import Output
from sslpipe.methods.simclr import pair_monitors
from sslpipe.methods.simsiam import participation_ratio
from sslpipe.recipe import Recipe, find_recipe, load_recipe
from sslpipe.recipe.names import Entry
from sslpipe.train import initial_method, train
from sslpipe.train.log import rows_until

SHOWN = ("loss", "agreement", "variance", "embedding_std", "embedding_rank", "feature_rankme")
SMALL = (
    "stream.batch_size=128", "train.warmup_epochs=1", "run.threads=1",
    "train.backbone={cifar_resnet: {width: 16, blocks: [1, 1, 1, 1]}}",
)  # fmt: skip
NOTHING: Mapping[str, Any] = MappingProxyType({})


def whole(method: Any) -> None:
    """Leave it as it is."""


def without_predictor(method: Any) -> None:
    method.predictor = nn.Identity()


def without_stop_gradient(method: Any) -> None:
    """The target is the network that learns, and takes gradients; for BYOL and SimSiam."""
    if hasattr(method, "online"):
        parts = method.online, method.predictor, as_byol
    else:
        parts = nn.Sequential(method.encoder, method.projector), method.predictor, as_simsiam
    method.forward = partial(both_learn, *parts)


def both_learn(
    network: nn.Module, predictor: nn.Module, output: Callable[..., Output], batch: Any
) -> Output:
    z_VBD = [network(view_BCHW) for view_BCHW in batch.views["global"][:2]]
    p_VBD = [predictor(z_BD) for z_BD in z_VBD]
    pairs = ((p_VBD[0], z_VBD[1]), (p_VBD[1], z_VBD[0]))
    cosine = sum(F.cosine_similarity(p.float(), z.float()).mean() for p, z in pairs) / 2
    return output(z_VBD, p_VBD, cosine)


def as_byol(z_VBD: list[Tensor], p_VBD: list[Tensor], cosine: Tensor) -> Output:
    """The loss of BYOL, and the metrics that it shows itself."""
    return Output(4 - 4 * cosine, pair_monitors(*p_VBD) | {"agreement": cosine.detach()})


def as_simsiam(z_VBD: list[Tensor], p_VBD: list[Tensor], cosine: Tensor) -> Output:
    """The loss of SimSiam, and the metrics that it shows itself."""
    signs = {"agreement": cosine.detach(), "embedding_rank": participation_ratio(z_VBD[0])}
    return Output(-cosine, pair_monitors(*z_VBD) | signs)


class Variant(NamedTuple):
    """A method with other settings, then changed. `said`: what its alarm must name; None: none."""

    method: str
    said: str | None
    settings: Mapping[str, Any] = NOTHING
    change: Callable[[Any], None] = whole
    images: int = 2000  # per epoch


def weights(*values: float) -> Mapping[str, float]:
    return dict(zip(("invariance", "variance", "covariance"), values, strict=True))


WHOLE = 10_000
STOP = "no stop-gradient"
WEIGHTS, TEMPERATURE = "an invariance term that outweighs", "a temperature that is too high"
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "byol": Variant("byol", None),
        "byol, no stop-gradient": Variant("byol", STOP, change=without_stop_gradient),
        "byol, no predictor": Variant("byol", STOP, change=without_predictor, images=WHOLE),
        "simsiam": Variant("simsiam", None, images=WHOLE),
        "simsiam, no stop-gradient": Variant(
            "simsiam", STOP, change=without_stop_gradient, images=WHOLE
        ),
        "simsiam, no predictor": Variant("simsiam", STOP, change=without_predictor, images=WHOLE),
        "vicreg": Variant("vicreg", None),
        "vicreg, weights 100, 100, 1": Variant("vicreg", None, weights(100.0, 100.0, 1.0)),
        "vicreg, weights 100, 1, 0": Variant("vicreg", WEIGHTS, weights(100.0, 1.0, 0.0)),
        "simclr": Variant("simclr", None),
        "simclr, temperature 10": Variant("simclr", TEMPERATURE, {"temperature": 10.0}),
    }
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("variants", nargs="*", default=[""])
    options.add_argument("--train", type=Path, required=True)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--out", type=Path, help="default: a folder that is removed")
    options.add_argument("--device", default="cpu")
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    figures, wrong = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for name in (n for n in VARIANTS if n.startswith(tuple(chosen.variants))):
            out = (chosen.out or Path(temporary)) / name.replace(", ", "_").replace(" ", "-")
            alarms = outcome(VARIANTS[name], out, chosen)
            figures.append(f"{name}: {alarms[0] if alarms else 'no alarm'}")
            wrong += [] if judged(VARIANTS[name].said, alarms) else [name]
            print(figures[-1])
            print("\n".join(ends(out / "metrics.jsonl")), flush=True)
    print(row("; ".join(figures), "timm"))
    if wrong:
        raise SystemExit(f"not as expected: {'; '.join(wrong)}")


def outcome(variant: Variant, out: Path, chosen: argparse.Namespace) -> tuple[str, ...]:
    """Train the method, and return the alarms that it raised."""
    recipe = recipe_of(variant, chosen)
    with sslpipe.load(recipe, shards=chosen.train, device=chosen.device) as pipe:
        method = initial_method(recipe, pipe.spec)
        variant.change(method)
        return train(pipe, method, recipe.train, out=out).alarms


def recipe_of(variant: Variant, chosen: argparse.Namespace) -> Recipe:
    """The recipe with the settings of a variant and of a small run."""
    length = [f"train.epochs={chosen.epochs}", f"stream.epoch_samples={variant.images}"]
    overrides = [*SMALL, *length, *chosen.sets]
    recipe = load_recipe(find_recipe(f"{variant.method}_cifar"), overrides=overrides)
    settings = {**recipe.method.settings, **variant.settings}
    return recipe.model_copy(update={"method": Entry(variant.method, settings)})


def judged(said: str | None, alarms: tuple[str, ...]) -> bool:
    """Whether the alarms are as they must be."""
    if said is None:
        return not alarms
    return bool(alarms) and all(said in a for a in alarms)


def ends(path: Path) -> list[str]:
    """What was logged at the ends of epochs, a line each."""
    rows = [r for r in rows_until(path, 2**62) if r["epoch"] % 1 == 0]
    return [
        f"    {r['epoch']:.0f}: " + ", ".join(f"{k} {r[k]:.4g}" for k in SHOWN if k in r)
        for r in rows
    ]


if __name__ == "__main__":
    main()
