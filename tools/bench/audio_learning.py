"""Does a method on sound learn? Digits of speakers that it never heard, beside fixed spectrograms.

    python tools/bench/audio_learning.py wav2vec2 audiomae byol_a --budget 5 --digits fsdd_flac.tar
                                         [--held-out theo] [--out audio-learning] [--epochs N]

The tar is a WebDataset of the Free Spoken Digit Dataset, keys `digit_speaker_take`. All takes of
one speaker are the test set, the others are packed for pretraining and for fitting probes; names
of digits are the classes. For each METHOD the recipe METHOD_small, whose epochs fit the budget of
minutes; then k-NN (k = 20) and a linear probe, beside the same encoder untrained. The fixed
baselines are 5 nearest neighbours (Euclidean) and the same linear probe on a log-spectrogram of
the whole recording, pooled to 32 bands x 8 parts: less its mean (the level), and standardised.
A run that was killed goes on, a method with a result is skipped: delete OUT/METHOD to repeat it.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from learning import Numbers, accuracies, cost_of_training, prefixed, remembered, shown
from provenance import row

from sslpipe.evaluate import Features, linear
from sslpipe.evaluate.subjects import first_encoder
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.train import load_encoder

SUFFIX = "_small"
BANDS, PARTS, NEIGHBOURS = 32, 8, 5
SAID = {
    "epochs": "epochs", "minutes": "min", "cpu_minutes": "CPU min", "knn": "k-NN",
    "untrained_knn": "untrained", "linear": "linear", "untrained_linear": "untrained",
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("methods", nargs="*")
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument("--budget", type=float, help="minutes of each pretraining")
    length.add_argument("--epochs", type=int, help="of each pretraining")
    options.add_argument("--digits", type=Path, required=True)
    options.add_argument("--held-out", default="theo")
    options.add_argument("--out", type=Path, default=Path("audio-learning"))
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args()
    chosen.finetune = False
    chosen.train, chosen.test = packed(chosen.digits, chosen.held_out, chosen.out)
    fixed = remembered(chosen.out / "fixed.json", lambda: baselines(chosen.out))
    results = {
        name: remembered(chosen.out / name / "result.json", lambda: measured(name, chosen))  # noqa: B023
        for name in chosen.methods
    }
    print(row(f"speaker {chosen.held_out} held out: the table; {json.dumps(fixed)}", "timm"))
    print(markdown(results))


def packed(digits: Path, held_out: str, out: Path) -> tuple[Path, Path]:
    """The training and the test shards, which are made if they are missing."""
    folders = split(digits, held_out, out / "digits")
    made = tuple(out / "shards" / folder.name for folder in folders)
    for folder, shards in zip(folders, made, strict=True):
        command = [sys.executable, "-m", "sslpipe", "pack", folder, shards, "--modality", "audio"]
        if not (shards / "manifest.json").exists():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made


def split(digits: Path, held_out: str, out: Path) -> tuple[Path, Path]:
    """Lay recordings in OUT/train/DIGIT and OUT/test/DIGIT, by their speaker."""
    speakers = set()
    with tarfile.open(digits) as tar:
        for member in tar:
            name = Path(member.name)
            if name.suffix != ".flac":
                continue
            digit, speaker, _ = name.stem.split("_")
            speakers.add(speaker)
            folder = out / ("test" if speaker == held_out else "train") / digit
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name.name).write_bytes(tar.extractfile(member).read())
    if held_out not in speakers:
        raise SystemExit(f"{digits}: no speaker {held_out!r}; there are {sorted(speakers)}")
    return out / "train", out / "test"


def measured(name: str, chosen: argparse.Namespace) -> Numbers:
    """Pretrain and judge one method."""
    folder = chosen.out / name
    recipe = load_recipe(find_recipe(name + SUFFIX), overrides=chosen.sets)
    cost = cost_of_training(recipe, folder, chosen)
    encoder, recipe = load_encoder(folder / "run" / "last.pt")
    untrained = accuracies(first_encoder(recipe), recipe, chosen)
    return {
        **cost,
        **accuracies(encoder, recipe, chosen),
        **prefixed("untrained_", untrained),
    }


def baselines(out: Path) -> Numbers:
    """Top-1 of neighbours and of a probe on fixed spectrograms."""
    from sklearn.neighbors import KNeighborsClassifier

    numbers: Numbers = {}
    for kind in ("less its mean", "standardised"):
        bank, queries = (spectrograms(out / "digits" / part, kind) for part in ("train", "test"))
        neighbours = KNeighborsClassifier(NEIGHBOURS).fit(bank.features, bank.labels)
        numbers[f"{kind}, 5-NN"] = float(neighbours.score(queries.features, queries.labels))
        numbers[f"{kind}, linear"] = linear(bank, queries).top1
    return numbers


def spectrograms(folder: Path, kind: str) -> Features:
    """Pooled log-spectrograms of recordings as features; their folders' names are the labels."""
    paths = sorted(folder.rglob("*.flac"))
    rows = np.stack([pooled(path.read_bytes()) for path in paths])
    rows -= rows.mean(1, keepdims=True)
    if kind == "standardised":
        rows /= rows.std(1, keepdims=True)
    labels = torch.tensor([int(path.parent.name) for path in paths])
    return Features(torch.from_numpy(rows).float(), labels, torch.arange(len(paths)))


def pooled(data: bytes) -> np.ndarray:
    """The log power spectrum of a recording, averaged over 32 bands x 8 parts of its length."""
    import soundfile
    from scipy.signal import stft

    samples, rate = soundfile.read(io.BytesIO(data))
    _, _, spectrum = stft(samples, rate, nperseg=256, noverlap=176)
    power = np.log(np.abs(spectrum) ** 2 + 1e-10)
    bands = [band.mean(0) for band in np.array_split(power, BANDS)]
    return np.concatenate([part.mean(1) for part in np.array_split(np.stack(bands), PARTS, 1)])


def markdown(results: Mapping[str, Numbers]) -> str:
    """One line per method."""
    head = ["method", *SAID.values(), "loss", "alarms"]
    lines = [head, ["---"] * len(head)]
    for name, result in results.items():
        loss = f"{result['losses'][0]:.3g} to {result['losses'][-1]:.3g}"
        numbers = [shown(result[key]) for key in SAID]
        lines.append([name, *numbers, loss, str(len(result["alarms"]))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
