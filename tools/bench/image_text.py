"""Do CLIP and SigLIP learn? A few minutes on captioned photos, then classes by their names.

    python tools/bench/image_text.py captions.tar classes.json [--methods clip siglip]
                                     [--epochs 14] [--out image_text] [--set stream.batch_size=64]

The tar holds N.jpg beside N.json, an object with "captions", a list, "label", a number, "split",
train or test; classes.json has {"0": {"name": ...}} for every number. Recipes are clip_small and
siglip_small, shortened to so many epochs, on one thread of this process: the CPU time of training
is told. Judged on the photos of split test, which no run has seen: zero-shot over all class names
and retrieval across towers, beside the same towers untrained, and chance.
A run that was killed goes on, a method with a result is skipped: delete OUT/METHOD to repeat it.
"""

import argparse
import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import torch
from learning import remembered
from provenance import row

from sslpipe.evaluate.subjects import open_subject
from sslpipe.evaluate.towers import cross_retrieval_of, open_towers, zero_shot_of
from sslpipe.evaluate.zero_shot import TEMPLATES
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.shards import PackSettings, pack
from sslpipe.train.loop import train_recipe

ALONE = ("run.workers=0", "run.threads=1")  # so that the CPU time of this process is all there is
PLAIN = ("a photo of {}",)
Numbers = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("captions", type=Path)
    options.add_argument("classes", type=Path)
    options.add_argument("--methods", nargs="+", default=["clip", "siglip"])
    options.add_argument("--epochs", type=int, default=14)
    options.add_argument("--out", type=Path, default=Path("image_text"))
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    shards = packed(chosen.captions, chosen.classes, chosen.out / "shards")
    results = {
        name: remembered(
            chosen.out / name / "result.json", lambda name=name: measured(name, shards, chosen)
        )
        for name in chosen.methods
    }
    print(row("; ".join(f"{name}: {figures(found)}" for name, found in results.items()), "timm"))


def packed(captions: Path, classes: Path, out: Path) -> dict[str, Path]:
    """Shards of each split, whose classes have names."""
    names = {int(k): v["name"] for k, v in json.loads(classes.read_text()).items()}
    shards = {split: out / split for split in ("train", "test")}
    if not all((folder / "manifest.json").exists() for folder in shards.values()):
        out.mkdir(parents=True, exist_ok=True)
        for split, folder in shards.items():
            part = out / f"{split}.tar"
            write_split(captions, split, names, part)
            pack(part, folder, PackSettings(codec=ImageCodec()))
            part.unlink()
    return shards


def write_split(captions: Path, split: str, names: dict[int, str], out: Path) -> None:
    """The samples of a split as a tar: N.jpg, N.json and N.cls, the name of the class."""
    with tarfile.open(captions) as tar, tarfile.open(out, "w") as made:
        members = {member.name: member for member in tar}
        for name in sorted(name for name in members if name.endswith(".json")):
            stem, text = name.removesuffix(".json"), tar.extractfile(members[name]).read()
            said = json.loads(text)
            if said["split"] != split:
                continue
            picture = tar.extractfile(members[f"{stem}.jpg"]).read()
            label = names[said["label"]].encode()
            kept = json.dumps({"captions": said["captions"]}).encode()
            for ext, data in (("jpg", picture), ("json", kept), ("cls", label)):
                member = tarfile.TarInfo(f"{stem}.{ext}")
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))


def measured(name: str, shards: dict[str, Path], chosen: argparse.Namespace) -> Numbers:
    """Train one method, or go on, and judge it."""
    folder = chosen.out / name / "run"
    sets = [*ALONE, f"train.epochs={chosen.epochs}", *chosen.sets]
    recipe = load_recipe(find_recipe(f"{name}_small"), overrides=sets)
    start, resume = time.process_time(), (folder / "last.pt").exists()
    done = train_recipe(
        recipe, shards=shards["train"], out=folder, resume=resume, max_steps=None, device="cpu"
    )
    if done.steps < done.total:
        raise SystemExit(f"stopped; the same command goes on from {folder / 'last.pt'}")
    spent = time.process_time() - start
    return {
        "cpu_minutes": None if resume else spent / 60,
        "steps": done.steps,
        **judged(folder, shards["test"]),
    }


def judged(run: Path, test: Path) -> Numbers:
    """Zero-shot, by the templates of `eval` and by one plain one, and retrieval across towers."""
    pair, device = open_towers(open_subject(run), untrained=True), torch.device("cpu")
    found = {
        "zero_shot": zero_shot_of(pair, test, device, TEMPLATES),
        "zero_shot_plain": zero_shot_of(pair, test, device, PLAIN),
        "cross_retrieval": cross_retrieval_of(pair, test, device),
    }
    return {
        protocol: {
            tower: {m.name: [m.value, m.chance] for m in measures}
            for tower, measures in towers.items()
        }
        for protocol, towers in found.items()
    }


def figures(found: Numbers) -> str:
    """One method's numbers in a line."""
    minutes = found["cpu_minutes"]
    spent = "resumed" if minutes is None else f"{minutes:.1f} CPU-minutes"

    def said(protocol: str, name: str) -> str:
        trained, untrained = (found[protocol][t][name] for t in ("trained", "untrained"))
        return f"{trained[0]:.3f} (untrained {untrained[0]:.3f}, chance {trained[1]:.3f})"

    parts = [
        f"zero-shot top-1 {said('zero_shot', 'zero-shot top-1')}",
        f"by '{PLAIN[0]}' alone {said('zero_shot_plain', 'zero-shot top-1')}",
        f"image to text R@5 {said('cross_retrieval', 'image to text R@5')}",
        f"text to image R@5 {said('cross_retrieval', 'text to image R@5')}",
    ]
    return f"{found['steps']} steps, {spent}: {', '.join(parts)}"


if __name__ == "__main__":
    main()
