import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sslpipe.errors import SslpipeError
from sslpipe.modalities.image.decode import decode
from sslpipe.report import log_evaluation
from sslpipe.report.pictures import SHEET, SampleFinder, sprites
from sslpipe.report.run_curves import charts, read_runs
from sslpipe.report.tables import short_names


def opened(uri):
    """The picture of a data URI."""
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_uid_has_its_own_picture(packed, stored):
    uids = stored[0].numpy()[[40, 3, 22]]
    with SampleFinder(packed) as finder:
        found = finder.keyed_squares(uids, 16)
        samples = finder.samples(uids)
        with pytest.raises(SslpipeError, match=r"has no sample of uid 5 \(1 of 2 are not there\)"):
            finder.places(np.array([5, uids[0]]))
    assert [key for key, _ in found] == [sample.key for sample in samples]
    assert [sample.uid for sample in samples] == uids.tolist()
    for (_, picture), sample in zip(found, samples, strict=True):
        whole = decode(sample.data, size=16)
        top, left = ((side - 16) // 2 for side in whole.shape[:2])
        middle = whole[top : top + 16, left : left + 16]
        assert np.abs(picture.astype(int) - middle).max() <= 1


def test_sprites_hold_every_picture_in_its_place():
    greys = np.arange(SHEET + 5) % 250
    squares = [np.full((64, 64, 3), grey, np.uint8) for grey in greys]
    made = sprites(squares, budget=10**6)
    assert len(made.uris) == 2
    for number in (0, 33, 999, 1000, 1004):
        sheet = opened(made.uris[number // SHEET])
        row, column = divmod(number % SHEET, made.columns)
        cell = sheet[row * made.side :, column * made.side :][: made.side, : made.side]
        assert np.abs(cell.astype(int) - greys[number]).max() <= 4
    assert sum(map(len, made.uris)) <= 10**6
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    assert sprites(list(noise), budget=10**9).side == 64
    assert sprites(list(noise), budget=60_000).side < 64
    assert sprites(list(noise), budget=0).side == 16


def test_curves_go_through_what_was_logged(evaluation):
    (run,) = read_runs([evaluation, evaluation])
    assert len(run.rows) == 20
    assert run.alarms == ()
    loss, lr, spread = charts([run])
    assert (loss.title, loss.low, loss.high, loss.epochs) == ("loss", 2.0, 3.9, 2.0)
    numbers = np.array(re.findall(r"[-\d.]+", loss.lines[0].path), float).reshape(-1, 2)
    assert numbers[0].tolist() == [18.6, 4.0], "epoch 0.1 of 2, the highest"
    assert numbers[-1].tolist() == [296.0, 106.0]
    assert lr.low == lr.high == 0.1
    assert "106.0" not in lr.lines[0].path, "a constant lies in the middle"
    assert spread.lines[0].last == 0.1


def test_a_collapse_is_told_and_null_is_no_point(evaluation, tmp_path):
    rows = [
        {"step": s, "epoch": s / 10, "loss": None if s == 3 else 1.0, "feature_rankme": 1.0}
        for s in range(1, 6)
    ]
    lines = [json.dumps(row) for row in rows] + ['{"step": 6, "epo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    subject = replace(evaluation.subject, name=str(tmp_path))  # a folder stands for its last.pt
    (run,) = read_runs([replace(evaluation, subject=subject)])
    assert len(run.alarms) == 1
    assert run.alarms[0].startswith("epoch 0.2: collapse: the effective rank of the features is 1.")
    loss, _ = charts([run])
    assert loss.lines[0].points == 4
    assert read_runs([replace(evaluation, subject=replace(subject, name="timm:resnet18"))]) == []


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/a/run/last.pt"], ["last.pt"]),
        (["/a/run/last.pt", "/b/run/epoch-1.pt"], ["last.pt", "epoch-1.pt"]),
        (["/a/run/last.pt", "/b/run/last.pt"], ["a/run/last.pt", "b/run/last.pt"]),
        (["last.pt", "x/last.pt"], ["last.pt", "x/last.pt"]),
        (["timm:resnet18", "timm:resnet18"], ["timm:resnet18", "timm:resnet18"]),
    ],
)
def test_names_are_as_short_as_they_may_be(names, short):
    assert short_names(names) == short


def test_tensorboard_has_scalars_and_the_embedding(evaluation, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    classes = ("a\tb", "c", "d")
    named = {n: replace(f, classes=classes) for n, f in evaluation.features.items()}
    log_evaluation(replace(evaluation, features=named), tmp_path, step=7, points=30)
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("eval/knn_top-1/trained")
    assert (scalar.step, scalar.value) == (7, 0.8125)
    assert "eval/5-shot/pixels" in events.Tags()["scalars"]
    (tensors,) = tmp_path.rglob("tensors.tsv")
    rows = np.loadtxt(tensors, delimiter="\t")
    assert rows.shape == (30, 48)
    head, *told = (tensors.parent / "metadata.tsv").read_text().splitlines()
    assert head.split("\t") == ["key", "label", "prediction", "correct"]
    keys = {f"class{i % 3}/{i:03d}" for i in range(45)}
    for line in told:
        key, label, guess, right = line.split("\t")
        assert key in keys
        assert label == ("a b", "c", "d")[int(key[5])]
        assert right == str(label == guess)
    features = evaluation.features["trained"].features.numpy()
    nearest = np.abs(rows[:, None] - features[None]).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-4
    with Image.open(tensors.parent / "sprite.png") as sprite:
        assert sprite.size == (6 * 48, 6 * 48)
