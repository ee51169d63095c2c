from dataclasses import replace

import pytest
import torch
from torch import nn

from sslpipe.batch import Batch
from sslpipe.encoders import build_encoder
from sslpipe.errors import ContractError, SslpipeError
from sslpipe.evaluate import Features, extract
from sslpipe.evaluate.encoding import Pixels
from sslpipe.evaluate.features import central_batches, extract_all
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe.names import Entry
from sslpipe.shards import PackSettings, pack
from tests.conftest import write_images
from tests.view_specs import square


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


def vit():
    settings = {"embed_dim": 24, "depth": 6, "num_heads": 2, "patch_size": 8}
    return build_encoder(Entry("vit_tiny", settings, "r.yaml:7"), square(32)).eval()


def test_several_encoders_see_the_same_batches_once(packed, recipe):
    encoders = {"trained": vit(), "untrained": Encoder(), "pixels": Pixels()}
    seen = []
    with central_batches(recipe, shards=packed, device="cpu", batch_size=8) as source:
        together = extract_all(encoders, source, "cpu", progress=seen.append)
    assert seen == [8, 8, 8, 8, 8, 5]
    for name, encoder in encoders.items():
        with central_batches(recipe, shards=packed, device="cpu", batch_size=8) as source:
            alone = extract(encoder, source, "cpu")
        for column in ("features", "labels", "uids", "contents", "blocks", "patches"):
            assert getattr(together[name], column).equal(getattr(alone, column)), (name, column)
    assert len(together["untrained"].blocks) == len(together["pixels"].patches) == 0


def test_blocks_and_patches_are_those_of_the_last_blocks():
    encoder, flags = vit(), torch.tensor([True, False, True])
    images = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (batch,) = (replace(b, views={"global": images}, valid=flags) for b in batches(sizes=(3,)))
    found = extract(encoder, [batch], "cpu")
    seen = []
    hooks = [b.register_forward_hook(lambda _, __, x: seen.append(x)) for b in encoder.model.blocks]
    with torch.no_grad():
        features = encoder(images[0])
        normed = [encoder.model.norm(x) for x in seen[-4:]]
    for hook in hooks:
        hook.remove()
    rows = torch.tensor([0, 2])
    assert found.features.equal(features[rows])
    assert found.blocks.shape == (2, 4, 24)
    torch.testing.assert_close(found.blocks, torch.stack([x[rows, 0] for x in normed], 1))
    torch.testing.assert_close(found.patches, normed[-1][rows, 1:].mean(1))
    torch.testing.assert_close(found.blocks[:, -1], found.features)  # pooled by the token


def test_contents_are_equal_where_the_bytes_are(tmp_path, recipe):
    write_images(tmp_path / "images", 9)
    first = tmp_path / "images" / "class0" / "000.jpg"
    (tmp_path / "images" / "class1" / "copy.jpg").write_bytes(first.read_bytes())
    settings = PackSettings(codec=ImageCodec(), shard_bytes=4_000)
    pack(tmp_path / "images", tmp_path / "packed", settings)
    keys = {}
    with central_batches(recipe, shards=tmp_path / "packed", device="cpu", batch_size=4) as source:
        for batch in source:
            keys |= dict(zip(batch.uids.tolist(), batch.keys, strict=True))
    with central_batches(recipe, shards=tmp_path / "packed", device="cpu", batch_size=4) as source:
        found = extract(nn.Flatten(), source, "cpu")
    assert found.contents.dtype == torch.int64
    groups = {}
    for uid, content in zip(found.uids.tolist(), found.contents.tolist(), strict=True):
        groups.setdefault(content, set()).add(keys[uid].rpartition("/")[2])
    assert sorted(map(len, groups.values())) == [1] * 8 + [2]
    assert {"000", "copy"} in groups.values()


def test_contents_of_an_iterable_are_not_known():
    assert len(extract(Encoder(), batches(), "cpu").contents) == 0


def test_pixels_are_averaged_down_to_32():
    images = torch.rand(2, 3, 64, 16, generator=torch.Generator().manual_seed(0))
    halved = (images[:, :, 0::2] + images[:, :, 1::2]) / 2
    torch.testing.assert_close(Pixels()(images), halved.flatten(1))
    small = images[:, :, :8, :8]
    assert Pixels()(small).equal(small.flatten(1))


def test_pixels_of_clips_are_those_of_their_mean_frame():
    clips = torch.rand(2, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    frames = sum(clips[:, :, t] for t in range(5)) / 5
    torch.testing.assert_close(Pixels()(clips), frames.flatten(1))
    torch.testing.assert_close(Pixels()(clips.flip(2)), Pixels()(clips))


def test_views_of_another_size_than_a_fixed_encoder_is_for():
    fixed = build_encoder(Entry("swin_tiny_patch4_window7_224", {}, "r.yaml:7"), square(64))
    with pytest.raises(SslpipeError, match=r"takes no views of 3 x 4 x 4 \(Input height"):
        extract(fixed, batches(), "cpu")
