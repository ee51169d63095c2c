import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sslpipe.errors import ShardError, SslpipeError
from sslpipe.evaluate.dealt_labels import deal_labels, first_of_classes
from sslpipe.evaluate.features import Features
from sslpipe.evaluate.labelling import labelled_by, together
from sslpipe.evaluate.pseudo_labels import (
    PseudoLabels,
    PseudoLabelSettings,
    calibrated,
    predict,
    pseudo_labels,
)
from sslpipe.shards.labels_file import LabelRow, label_table

NAMES = ("ant", "bee", "cat")


def blobs(count, *, classes=3, spread=1.0, seed=0, first=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    z = centres[labels] + spread * torch.randn(count, 8, generator=generator)
    uids = first + torch.randperm(count, generator=generator)
    return Features(z, labels, uids, NAMES[:classes])


def hidden(features):
    return replace(features, labels=torch.full_like(features.labels, -1))


def values(measures):
    return {measure.name: measure.value for measure in measures}


def test_the_surest_of_each_predicted_class_are_kept():
    found = PseudoLabels(
        torch.arange(10, 18),
        torch.tensor([0, 0, 0, 0, 0, 1, 1, 2]),
        torch.tensor([0.9, 0.5, 0.7, 0.7, 0.6, 0.4, 0.3, 0.2]),
        (),
        1.0,
    )
    kept = found.confident(0.4)  # 2 of 5, 1 of 2, 1 of 1; of equal ones the first uid
    assert kept.uids.tolist() == [10, 12, 15, 17]
    assert kept.labels.tolist() == [0, 0, 1, 2]
    assert kept.confidences.tolist() == pytest.approx([0.9, 0.7, 0.4, 0.2])
    assert found.confident(1.0).uids.tolist() == found.uids.tolist()


@pytest.mark.parametrize("classes", [2, 3])
def test_predictions_are_scikit_learns(classes):
    known, rest = blobs(60, classes=classes), blobs(40, classes=classes, seed=1, first=100)
    found = predict(known, hidden(rest), PseudoLabelSettings())
    scaler = StandardScaler().fit(known.features.double().numpy())
    model = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8)
    model.fit(scaler.transform(known.features.double().numpy()), known.labels.numpy())
    rest_ND = scaler.transform(rest.features.double().numpy())
    assert found.labels.tolist() == model.predict(rest_ND).tolist()
    log = model.predict_log_proba(rest_ND) / found.temperature
    shares = np.exp(log) / np.exp(log).sum(1, keepdims=True)
    np.testing.assert_allclose(found.confidences.numpy(), shares.max(1), atol=2e-3)
    assert found.classes == NAMES[:classes]


def test_truth_of_the_rest_is_not_looked_at():
    known, rest = blobs(60), blobs(40, seed=1, first=100)
    settings = PseudoLabelSettings()
    seen, unseen = (predict(known, part, settings) for part in (rest, hidden(rest)))
    assert torch.equal(seen.labels, unseen.labels)
    assert torch.equal(seen.confidences, unseen.confidences)


def test_the_temperature_makes_confidence_a_frequency():
    """Noise has no classes: a probe of many channels is sure of them, its labels are not right."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(90, 60, generator=generator)
    noise = Features(z, torch.arange(90) % 3, torch.arange(90))
    assert calibrated(noise, PseudoLabelSettings()) > 5
    found = predict(noise, hidden(replace(noise, features=z.flip(0))), PseudoLabelSettings())
    assert found.confidences.mean() < 0.6
    clear = calibrated(blobs(90, spread=0.05), PseudoLabelSettings())
    assert clear < 0.5
    one_shot = calibrated(blobs(3), PseudoLabelSettings())
    assert one_shot == 1.0


def test_a_class_of_one_is_known_in_every_fold():
    features = blobs(40)
    alone = features.at(torch.cat([torch.arange(30), torch.arange(2, 3)]))
    alone.labels[-1] = 7
    assert calibrated(replace(alone, classes=()), PseudoLabelSettings()) > 0


def test_precision_and_gain_are_those_of_a_slow_loop():
    features = blobs(400, spread=1.4)
    found = values(pseudo_labels(features))
    parts = deal_labels(features, None, known=0.1, seed=0)
    truth = dict(zip(features.uids.tolist(), features.labels.tolist(), strict=True))
    predicted = predict(parts.known, parts.rest, PseudoLabelSettings())
    rows = sorted(
        zip(
            predicted.labels.tolist(),
            (-predicted.confidences).tolist(),
            predicted.uids.tolist(),
            strict=True,
        )
    )
    for share, name in ((0.5, ""), (0.1, " at 10%"), (1.0, " at 100%")):
        kept = []
        for label in range(3):
            of = [row for row in rows if row[0] == label]
            kept += of[: math.ceil(share * len(of))]
        right = sum(truth[uid] == label for label, _, uid in kept) / len(kept)
        assert found[f"pseudo-label precision{name}"] == pytest.approx(right)
    assert found["pseudo-label precision at 10%"] > found["pseudo-label precision at 100%"]
    assert found["pseudo-label coverage"] == pytest.approx(0.5, abs=0.01)
    gain = found["pseudo-label top-1"] - found["few-label top-1"]
    assert found["pseudo-label gain"] == pytest.approx(gain)
    assert found["few-label top-1"] > 0.4


def test_the_parts_share_no_sample_and_follow_from_seed_and_uid():
    features = blobs(300)
    parts = deal_labels(features, None, known=0.1, seed=0)
    uids = [set(part.uids.tolist()) for part in (parts.known, parts.rest, parts.test)]
    assert [len(part) for part in uids] == [24, 216, 60]
    assert set.union(*uids) == set(range(300))
    other = deal_labels(features, None, known=0.1, seed=1)
    assert set(other.known.uids.tolist()) != uids[0]
    few = first_of_classes(features, 0.1, 2, 0, "x")
    more = first_of_classes(features, 0.2, 2, 0, "x")
    assert (more >= few).all()
    assert more.sum() == 60


def test_no_order_of_samples_changes_a_number():
    features, test = blobs(200, spread=1.5), blobs(50, spread=1.5, seed=1)
    mixed = features.at(torch.arange(200).flip(0))
    assert pseudo_labels(features) == pseudo_labels(mixed)
    assert pseudo_labels(features, test) == pseudo_labels(mixed, test)


def test_a_set_labelled_in_part_is_taken_as_it_is():
    features = blobs(200)
    few = features.labels.clone()
    few[60:] = -1
    found = pseudo_labels(replace(features, labels=few), blobs(60, seed=1))
    assert "pseudo-label precision" not in values(found)  # nobody knows
    assert "of 60 labels, 140 samples without" in found[0].protocol
    assert values(found)["pseudo-label top-1"] > 0.6


def test_classes_of_the_test_set_are_matched_by_name():
    train, test = blobs(200, spread=0.3), blobs(60, spread=0.3, seed=1)
    turned = replace(test, labels=2 - test.labels, classes=NAMES[::-1])
    assert values(pseudo_labels(train, turned)) == values(pseudo_labels(train, test))


def test_what_cannot_be_measured():
    with pytest.raises(SslpipeError, match="none of the 30 samples has a label"):
        pseudo_labels(hidden(blobs(30)))
    with pytest.raises(SslpipeError, match="are of one class"):
        pseudo_labels(blobs(30, classes=1))
    with pytest.raises(SslpipeError, match="no class has 5 labelled samples"):
        pseudo_labels(blobs(12))
    with pytest.raises(SslpipeError, match="every sample has a label"):
        pseudo_labels(blobs(6), blobs(6, seed=1))
    with pytest.raises(SslpipeError, match=r"a share of 50 is not above 0"):
        PseudoLabelSettings(share=50)


def test_labels_of_a_table_go_before_those_of_features():
    features = blobs(6)
    rows = [LabelRow(2, "", "cat", 1.0), LabelRow(4, "", "ant", 1.0)]
    made = labelled_by(features, label_table("f.csv", rows))
    names = {uid: NAMES[label] for uid, label in zip(made.uids.tolist(), made.labels, strict=True)}
    before = {
        uid: NAMES[label]
        for uid, label in zip(features.uids.tolist(), features.labels, strict=True)
    }
    assert names == {**before, 2: "cat", 4: "ant"}
    bare = labelled_by(replace(hidden(features), classes=()), label_table("f.csv", rows))
    assert bare.classes == ("ant", "cat")
    assert sorted(bare.labels.tolist()) == [-1, -1, -1, -1, 0, 1]
    with pytest.raises(ShardError, match="9 is no sample of the 6 that were encoded"):
        labelled_by(features, label_table("f.csv", [LabelRow(9, "", "cat", 1.0)]))


def test_two_sets_teach_together_by_name():
    one, two = blobs(6), blobs(6, seed=1, first=100)
    turned = replace(two, labels=2 - two.labels, classes=NAMES[::-1])
    both = together(one, turned)
    assert torch.equal(both.labels, torch.cat([one.labels, two.labels]))
    with pytest.raises(SslpipeError, match="'dog' of the shards is none of those that teach"):
        together(one, replace(two, classes=("ant", "bee", "dog")))
