import pytest
import torch
from torch import nn

from sslpipe.encoders import build_encoder
from sslpipe.errors import ContractError
from sslpipe.methods.moco import GroupedBatchNorm, group_batch_norms
from sslpipe.recipe.names import Entry
from tests.view_specs import square


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 4, 4)])
def test_every_group_is_a_batch_of_its_own(rand, shape):
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain, x = kind(3).double(), rand(*shape)
    nn.init.normal_(plain.weight)
    grouped = GroupedBatchNorm(plain, 2)
    parts = [nn.functional.batch_norm(x[i : i + 4], None, None, plain.weight, plain.bias, True)
             for i in (0, 4)]  # fmt: skip
    torch.testing.assert_close(grouped(x), torch.cat(parts))


def test_one_group_is_plain_batch_norm_in_training_and_evaluation(rand):
    x = rand(8, 3, 4, 4)
    plain, grouped = nn.BatchNorm2d(3).double(), GroupedBatchNorm(nn.BatchNorm2d(3).double(), 1)
    for _ in range(2):
        torch.testing.assert_close(grouped(x), plain(x))
    torch.testing.assert_close(grouped.state_dict(), plain.state_dict())
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x))


def test_running_statistics_are_the_mean_of_the_groups(rand):
    x = rand(8, 3)
    grouped = GroupedBatchNorm(nn.BatchNorm1d(3).double(), 4)
    grouped(x)
    pairs_GBC = x.view(4, 2, 3)
    torch.testing.assert_close(grouped.running_mean, 0.1 * pairs_GBC.mean((0, 1)))
    torch.testing.assert_close(grouped.running_var, 0.9 + 0.1 * pairs_GBC.var(1).mean(0))
    assert grouped.num_batches_tracked == 1


def test_a_grouped_encoder_loads_as_the_plain_one_and_is_never_synchronised():
    entry = Entry("cifar_resnet", {"width": 4, "blocks": (1, 1, 1, 1)})
    encoder, plain = (build_encoder(entry, square(8)) for _ in range(2))
    names = list(encoder.state_dict())
    group_batch_norms(encoder, 2)
    assert list(encoder.state_dict()) == names
    plain.load_state_dict(encoder.state_dict())
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(encoder.eval()(images), plain.eval()(images))
    assert not encoder(images).equal(encoder.train()(images))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    kinds = {type(part) for part in synced.modules()}
    assert GroupedBatchNorm in kinds
    assert not kinds & {nn.SyncBatchNorm, nn.BatchNorm2d}


@pytest.mark.parametrize(
    "norm",
    [
        nn.SyncBatchNorm(3),
        nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, track_running_stats=False),
    ],
)
def test_other_batch_norms_are_refused(norm):
    with pytest.raises(ContractError, match="bn_groups to 1"):
        group_batch_norms(nn.Sequential(norm), 2)
