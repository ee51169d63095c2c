"""From a name and shards to all numbers: the right encoders, the right samples, one pass each."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sslpipe.errors import SslpipeError
from sslpipe.evaluate import EvalSettings, evaluate
from sslpipe.evaluate.command import check_labels, check_options
from sslpipe.evaluate.features import central_batches, extract
from sslpipe.evaluate.knn import neighbours
from sslpipe.evaluate.linear import logistic
from sslpipe.evaluate.protocols import FROZEN, QUICK, TRAINED, chosen_protocols
from sslpipe.evaluate.subjects import open_subject
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, pack
from tests.conftest import write_images
from tests.evaluate.test_subjects import trained

KNN = EvalSettings(protocols=("knn",), device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, packed):
    folder = tmp_path_factory.mktemp("run")
    trained(folder, packed, "simclr")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Classes 0 to 2, and 1 and 2 alone, whose numbers are one less."""
    folder = tmp_path_factory.mktemp("sets")
    write_images(folder / "all", 30)
    for part in (1, 2):
        shutil.copytree(folder / f"all/class{part}", folder / f"some/class{part}")
    for name in ("all", "some"):
        pack(folder / name, folder / f"{name}_shards", PackSettings(codec=ImageCodec()))
    return folder / "all_shards", folder / "some_shards"


def test_protocols_by_name_in_the_order_of_their_cost():
    assert chosen_protocols(["linear", "knn"]) == ("knn", "linear")
    assert chosen_protocols(["quick"]) == QUICK
    assert chosen_protocols(["all"]) == tuple(FROZEN)
    assert chosen_protocols(["quick", "probe_mae", "heads"]) == (*QUICK, "heads", "probe_mae")
    assert not FROZEN.keys() & TRAINED.keys()
    with pytest.raises(SslpipeError, match="--protocols knm,linear: no 'knm'; did you mean 'knn'"):
        chosen_protocols(["knm", "linear"])


def test_every_encoder_is_measured_on_the_same_samples(run, packed):
    said = []
    settings = EvalSettings(protocols=("linear", "knn"), device="cpu")
    found = evaluate(
        run, packed, settings=settings, say=lambda *told: said.append(told), begin=said.append
    )
    assert [said[0], said[1][0], said[2], said[3][0]] == ["knn", "knn", "linear", "linear"]
    assert set(found.measures) == set(found.features) == {"trained", "untrained", "pixels"}
    subject = open_subject(run)
    encoders = {"trained": subject.encoder, "untrained": subject.untrained()}
    for name, encoder in encoders.items():
        with central_batches(subject.recipe, shards=packed, device="cpu") as batches:
            alone = extract(encoder, batches, "cpu")
        assert alone.features.equal(found.features[name].features)
        assert found.measures[name] == (*neighbours(alone), *logistic(alone))
    uids = [features.uids for features in found.features.values()]
    assert all(other.equal(uids[0]) for other in uids)
    assert found.measures["trained"] != found.measures["untrained"]


def test_pixels_are_measured_without_their_mean(run, packed):
    """The mean of bright pictures would make all cosines alike; a recipe may subtract it or not."""
    found = evaluate(run, packed, settings=EvalSettings(protocols=("knn",), device="cpu"))
    pixels = found.features["pixels"]
    less = replace(pixels, features=pixels.features - pixels.features.mean(0))
    assert found.measures["pixels"] == neighbours(less)


def test_pixels_are_the_baseline_of_some_protocols_only(run, packed):
    settings = EvalSettings(protocols=("knn", "clustering"), untrained=False, device="cpu")
    found = evaluate(run, packed, settings=settings)
    assert set(found.measures) == {"trained", "pixels"}
    assert {measure.name for measure in found.measures["pixels"]} < {
        measure.name for measure in found.measures["trained"]
    }


def test_features_are_kept_and_what_is_kept_is_not_encoded(run, packed, tmp_path):
    settings = EvalSettings(protocols=("knn",), device="cpu", cache=tmp_path / "kept")
    calls = []

    def progress(done, total):
        calls.append(done)

    first = evaluate(run, packed, settings=settings, progress=progress)
    assert sum(calls[-1:]) == 45
    calls.clear()
    again = evaluate(run / "last.pt", packed, settings=settings, progress=progress)
    assert not calls
    assert again.measures == first.measures


def test_classes_are_matched_by_name(run, sets):
    whole, part = sets
    settings = EvalSettings(protocols=("linear", "knn"), untrained=False, device="cpu")
    found = evaluate(run, whole, part, settings)
    assert found.note == "only the training set has class0"
    bank, queries = found.features["trained"], found.tested["trained"]
    label = dict(zip(bank.uids.tolist(), bank.labels.tolist(), strict=True))
    assert queries.labels.tolist() == [label[uid] for uid in queries.uids.tolist()]
    assert set(queries.labels.tolist()) == {1, 2}
    strict = EvalSettings(protocols=("knn",), strict=True, device="cpu")
    with pytest.raises(SslpipeError, match="the classes differ: only the training set has class0"):
        evaluate(run, whole, part, strict)


def test_what_a_set_is_not_for_is_told_or_refused_if_it_was_asked_for(run, packed):
    said = {}
    quick = EvalSettings(untrained=False, pixels=False, device="cpu")
    found = evaluate(run, packed, settings=quick, say=said.__setitem__)
    assert tuple(said) == QUICK
    assert set(found.skipped) == {"few_shot"}  # 15 a class, and it wants 25
    assert said["few_shot"] == found.skipped["few_shot"]
    assert not [m for m in found.measures["trained"] if "shot" in m.name]
    with pytest.raises(SslpipeError, match="few-shot"):
        evaluate(run, packed, settings=EvalSettings(protocols=("few_shot",), device="cpu"))


def test_a_set_without_labels_is_refused(run, tmp_path):
    write_images(tmp_path / "photos", 6, classes=1)
    pack(tmp_path / "photos" / "class0", tmp_path / "shards", PackSettings(codec=ImageCodec()))
    said = []
    with pytest.raises(SslpipeError, match="none of the 6 samples has a label"):
        evaluate(run, tmp_path / "shards", settings=KNN, progress=lambda *done: said.append(done))
    with pytest.raises(SslpipeError, match="not enough for knn; name other protocols"):
        check_labels(tmp_path / "shards", ["label_free", "knn"], classes=1)
    check_labels(tmp_path / "shards", ["label_free"], classes=2)
    assert not said  # before anything was encoded


def test_options_that_no_protocol_reads_are_refused():
    for name, value in {"epochs": 3, "part": "all", "templates": Path("t.txt")}.items():
        with pytest.raises(SslpipeError, match=f"--{name} {value}: is for "):
            check_options(("knn",), EvalSettings(protocols=("knn",), **{name: value}))
    check_options(("probe_mae",), EvalSettings(protocols=("probe_mae",), epochs=3))
