import pytest
import torch
from torch import nn

from sslpipe.batch import Batch
from sslpipe.evaluate import cross_validated, evaluate, extract, knn, leave_one_out, linear


def batches(*, seed, classes=6):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 3, 2, 2, generator=torch.Generator().manual_seed(9))
    for step in range(4):
        labels = torch.arange(12) % classes
        images = centres[labels] + torch.randn(12, 3, 2, 2, generator=generator)
        yield Batch(
            views={"global": images[None]}, masks={}, hidden={}, targets={}, params={},
            labels=labels,
            uids=torch.arange(12) + 12 * step, keys=("k",) * 12,
            valid=torch.ones(12, dtype=torch.bool), epoch=0, step=step,
        )  # fmt: skip


def test_report_with_a_test_set():
    encoder = nn.Flatten()
    train, test = (extract(encoder, batches(seed=s), "cpu") for s in (0, 1))
    report = evaluate(encoder, batches(seed=0), batches(seed=1), "cpu")
    neighbours = knn(train, test)
    assert [(row.name, row.value) for row in report.rows] == [
        ("knn top-1", neighbours.top1),
        ("knn top-5", neighbours.top5),
        ("linear top-1", linear(train, test).top1),
    ]
    assert report.protocol == ("frozen 12-d backbone features, 6 classes, tested on a test set")
    assert "k=20, T=0.07" in report.rows[0].protocol
    assert "48 queries, bank of 48" in report.rows[0].protocol


def test_report_without_a_test_set():
    encoder = nn.Flatten()
    train = extract(encoder, batches(seed=0, classes=3), "cpu")
    report = evaluate(encoder, batches(seed=0, classes=3), None, "cpu")
    assert [row.name for row in report.rows] == ["knn top-1", "linear top-1"]
    assert report.rows[0].value == leave_one_out(train).top1
    assert report.rows[1].value == pytest.approx(cross_validated(train).top1)
    assert "left out in turn" in report.protocol
    assert "5-fold" in report.rows[1].protocol
