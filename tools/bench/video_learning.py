"""Does a method on clips learn motion? Beside the untrained encoder, one frame, and shuffled time.

    python tools/bench/video_learning.py videomae cvrl --budget 4 [--clips 1600] [--test-clips 800]
                                         [--out video-learning] [--epochs N] [--set KEY=VALUE]

Clips are made and packed (moving_shapes.py: the class is a motion, one frame does not show it). For
each METHOD the recipe METHOD_small, whose epochs fit the budget of minutes; then k-NN (k = 20) and
a linear probe on central clips of videos that it never saw, beside

    untrained      the same encoder as it was first drawn
    still          the trained encoder, shown the middle frame of a clip at all times
    shuffled       the trained encoder and a probe that are both shown frames in a random order
    turned         a probe fitted on ordered clips, tested on shuffled ones
    mean frame     the mean of a clip's frames as the features

An order-free reader can tell pairs of opposite motions from other pairs, at best half of the clips:
`shuffled` may stay above chance by that. A run that was killed goes on; a method with a result is
skipped: delete OUT/METHOD to repeat it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import moving_shapes
import torch
from learning import FUSED, Numbers, cost_of_training, features, remembered, shown
from provenance import row
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sslpipe.evaluate import Features, knn, linear
from sslpipe.evaluate.encoding import Pixels
from sslpipe.evaluate.subjects import first_encoder
from sslpipe.recipe import Entry, Recipe, find_recipe, load_recipe
from sslpipe.train import load_encoder

SUFFIX = "_small"
SHOWN = ("untrained", "trained", "still", "shuffled", "turned", "mean frame")


class Still(nn.Module):
    """An encoder that is shown the middle frame of each clip, again and again."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        middle = clips_BCTHW.shape[2] // 2
        return self.encoder(clips_BCTHW[:, :, middle, None].expand_as(clips_BCTHW))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("methods", nargs="*")
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument("--budget", type=float, help="minutes of each pretraining")
    length.add_argument("--epochs", type=int, help="of each pretraining")
    options.add_argument("--clips", type=int, default=1600)
    options.add_argument("--test-clips", type=int, default=800)
    options.add_argument("--out", type=Path, default=Path("video-learning"))
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args()
    chosen.train = packed("train", range(chosen.clips), chosen.out)
    test = range(chosen.clips, chosen.clips + chosen.test_clips)
    chosen.test = packed("test", test, chosen.out)
    results = {}
    with sdpa_kernel([SDPBackend.MATH] if chosen.device == "cpu" else FUSED):  # as learning.py
        for name in chosen.methods:
            place = chosen.out / name / "result.json"
            results[name] = remembered(place, lambda: measured(name, chosen))  # noqa: B023
    print(row("clips of 8 motions: the table", "timm", "torchvision"))
    print(markdown(results))


def packed(part: str, numbers: range, out: Path) -> Path:
    """The shards of a part, which are made if they are missing."""
    shards, folder = out / "shards" / part, out / "clips" / part
    if not (shards / "manifest.json").exists():
        moving_shapes.write(folder, numbers)
        command = [sys.executable, "-m", "sslpipe", "pack", folder, shards, "--modality", "video"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return shards


def measured(name: str, chosen: argparse.Namespace) -> Numbers:
    """Pretrain and judge one method."""
    folder = chosen.out / name
    recipe = load_recipe(find_recipe(name + SUFFIX), overrides=chosen.sets)
    cost = cost_of_training(recipe, folder, chosen)
    return {**cost, **judged(*load_encoder(folder / "run" / "last.pt"), chosen)}


def judged(encoder: nn.Module, recipe: Recipe, chosen: argparse.Namespace) -> Numbers:
    """k-NN and probe of all that SHOWN names."""
    order = shuffled(recipe)
    ordered, mixed = (pair(encoder, r, chosen) for r in (recipe, order))
    pairs = {
        "untrained": pair(first_encoder(recipe), recipe, chosen),
        "trained": ordered,
        "still": pair(Still(encoder), recipe, chosen),
        "shuffled": mixed,
        "turned": (ordered[0], mixed[1]),
        "mean frame": pair(Pixels(), recipe, chosen),
    }
    return {
        name: {"knn": knn(*both).top1, "linear": linear(*both).top1} for name, both in pairs.items()
    }


def pair(module: nn.Module, recipe: Recipe, chosen: argparse.Namespace) -> tuple[Features, ...]:
    """Features of the training and of the test clips."""
    return tuple(features(module, recipe, shards, chosen) for shards in (chosen.train, chosen.test))


def shuffled(recipe: Recipe) -> Recipe:
    """The same recipe, with frames in an order drawn for each clip."""
    group = recipe.views["global"]
    first, *others = group.ops
    settings = {name: first.settings[name] for name in ("frames", "stride")}
    mixed = Entry("ShuffledClip", settings, first.where)
    ops = group.model_copy(update={"ops": (mixed, *others), "count": 1})
    return recipe.model_copy(update={"views": {**recipe.views, "global": ops}})


def markdown(results: dict[str, Numbers]) -> str:
    """One line per method; k-NN / linear."""
    head = ["method", "epochs", "min", "CPU min", *SHOWN, "loss", "alarms"]
    lines = [head, ["---"] * len(head)]
    for name, result in results.items():
        both = [f"{result[key]['knn']:.3f} / {result[key]['linear']:.3f}" for key in SHOWN]
        spent = [shown(result[key]) for key in ("epochs", "minutes", "cpu_minutes")]
        loss = f"{result['losses'][0]:.3g} to {result['losses'][-1]:.3g}"
        lines.append([name, *spent, *both, loss, str(len(result["alarms"]))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
