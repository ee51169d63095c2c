from dataclasses import replace

import pytest
import torch
from torch import nn

from sslpipe.batch import Batch
from sslpipe.errors import ContractError, SslpipeError
from sslpipe.evaluate import Features, extract


def batches(*, views=2, sizes=(3, 2)):
    generator = torch.Generator().manual_seed(0)
    start = 0
    for size in sizes:
        uids = torch.arange(start, start + size)
        yield Batch(
            views={"global": torch.randn(views, size, 3, 4, 4, generator=generator)},
            masks={}, hidden={}, targets={}, params={}, labels=uids % 2, uids=uids + 100,
            keys=("k",) * size, valid=torch.ones(size, dtype=torch.bool), epoch=0, step=0,
        )  # fmt: skip
        start += size


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.layer = nn.Linear(3, 6)
        self.dtypes = []

    def forward(self, images):
        x = self.layer(self.frozen(self.drop(self.norm(images).mean(dim=(2, 3)))))
        self.dtypes.append(x.dtype)
        return x


def test_first_view_in_order_with_labels_and_uids():
    encoder = Encoder()
    features = extract(encoder, batches(), "cpu")
    images = torch.cat([batch.views["global"][0] for batch in batches()])
    torch.testing.assert_close(features.features, encoder.eval()(images).detach())
    assert features.features.dtype == torch.float32
    assert not features.features.requires_grad
    assert features.labels.tolist() == [0, 1, 0, 1, 0]
    assert features.uids.tolist() == [100, 101, 102, 103, 104]


def test_samples_that_are_not_valid_are_left_out():
    flags = iter([torch.tensor([True, False, True]), torch.tensor([False, True])])
    marked = [replace(batch, valid=next(flags)) for batch in batches()]
    features = extract(Encoder(), marked, "cpu")
    assert features.uids.tolist() == [100, 102, 104]
    assert features.labels.tolist() == [0, 0, 0]
    assert len(features.features) == 3


def test_modes_and_statistics_are_left_alone():
    encoder = Encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    extract(encoder, batches(), "cpu")
    assert [m.training for m in (encoder, encoder.norm, encoder.drop)] == [True] * 3
    assert not encoder.frozen.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_modes_come_back_after_an_error():
    encoder = Encoder()
    with pytest.raises(RuntimeError):
        extract(nn.Sequential(encoder, nn.Linear(5, 5)), batches(), "cpu")
    assert encoder.norm.training


def test_autocast():
    encoder = Encoder()
    features = extract(encoder, batches(), "cpu", autocast=torch.bfloat16)
    assert set(encoder.dtypes) == {torch.bfloat16}
    assert features.features.dtype == torch.float32


def test_missing_group_and_no_batches():
    with pytest.raises(ContractError, match="no view group 'globl'; did you mean 'global'"):
        extract(Encoder(), batches(), "cpu", "globl")
    with pytest.raises(SslpipeError, match="there are no batches"):
        extract(Encoder(), [], "cpu")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_name_the_sample(value):
    """A bank with one such row would give a k-NN accuracy of 0.000 and no word of it."""
    features = torch.ones(5, 3)
    features[2, 1] = features[4, 0] = value
    message = r"the features of uid 102 are not finite \(2 of 5 samples\)"
    with pytest.raises(SslpipeError, match=message):
        Features(features, torch.zeros(5, dtype=torch.int64), torch.arange(100, 105))
    encoder = Encoder()
    encoder.register_forward_hook(lambda m, images, out: features[: len(out)])
    with pytest.raises(SslpipeError, match=r"uid 102 are not finite"):
        extract(encoder, batches(), "cpu")
