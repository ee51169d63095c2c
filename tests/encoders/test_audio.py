"""Encoders of sound against transformers and against what their shapes must be."""

import pytest
import torch

from sslpipe.batch import ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.encoders.audio import AudioNTT
from sslpipe.encoders.patches import sincos
from sslpipe.encoders.wav2vec2 import KERNELS, STRIDES, Wav2Vec2Encoder, conv_frames
from sslpipe.errors import ContractError, RecipeError
from sslpipe.recipe import Entry
from tests.view_specs import square

SAMPLES, FRAMES = 1600, 4
WAVES = ViewSpec("wave", 1, "T", (SAMPLES,))
MELS = ViewSpec("global", 1, "CFT", (1, 32, 48))
SIZES = {"dim": 32, "depth": 2, "heads": 4, "conv_dim": 16}
PLACES = {"position_kernel": 16, "position_groups": 4}


def waves(count=3, samples=SAMPLES):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, samples, generator=generator) * 2 - 1


def wav2vec2(**settings):
    torch.manual_seed(0)
    return Wav2Vec2Encoder(WAVES, **SIZES | PLACES | settings)


def theirs(conv_norm):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        feat_extract_norm=conv_norm, conv_bias=conv_norm == "layer", hidden_dropout=0,
        attention_dropout=0, feat_proj_dropout=0, activation_dropout=0, layerdrop=0,
    )  # fmt: skip
    torch.manual_seed(1)
    return Wav2Vec2Model(config).eval()


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_wav2vec2_is_that_of_transformers_with_the_same_weights(conv_norm):
    other, ours = theirs(conv_norm), wav2vec2(conv_norm=conv_norm).eval()
    ours.load_state_dict(other.state_dict())
    expected = other(waves())
    features = ours.features(waves())
    normed = ours.normed(features)
    torch.testing.assert_close(normed, expected.extract_features, rtol=0, atol=1e-5)
    states = ours.context(normed)
    torch.testing.assert_close(states, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(waves()), states.mean(1))
    other.load_state_dict(wav2vec2(conv_norm=conv_norm).state_dict())  # and back, by name


def test_masked_frames_and_padding_are_theirs():
    other, ours = theirs("group"), wav2vec2().eval()
    ours.load_state_dict(other.state_dict())
    normed = ours.normed(ours.features(waves()))
    hidden = torch.tensor([[True, False, False, True], [False] * 4, [False, True, True, False]])
    expected = other(waves(), mask_time_indices=hidden).last_hidden_state
    got = ours.context(normed, hidden_BN=hidden)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

    real_samples = torch.arange(SAMPLES) < torch.tensor([[SAMPLES], [1100], [800]])
    expected = other(waves(), attention_mask=real_samples.long()).last_hidden_state
    real = ours.real_frames(torch.tensor([SAMPLES, 1100, 800]), FRAMES)
    assert real.sum(1).tolist() == [4, 3, 2]
    got = ours.context(normed, real_BN=real)
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-5)


def test_padding_is_no_part_of_features():
    encoder, sound = wav2vec2(conv_norm="layer").eval(), waves(2, 1100)
    padded = torch.nn.functional.pad(sound, (0, 500))
    torch.testing.assert_close(encoder(padded), encoder(sound))
    silence = torch.zeros(1, SAMPLES)
    assert encoder(silence).isfinite().all()


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(16_000, 49), (160_000, 499), (250_000, 781), (320_000, 999), (400, 1), (399, 0), (5, 0)],
)
def test_frames_are_those_of_the_convolutions(samples, frames):
    assert conv_frames(samples, KERNELS, STRIDES) == frames


def test_features_are_as_many_as_said():
    encoder = wav2vec2()
    assert encoder.features(waves()).shape == (3, encoder.frames(SAMPLES), 16)
    assert encoder.frames(SAMPLES) == FRAMES
    assert (encoder.hop, encoder.field) == (320, 400)
    short = wav2vec2(kernels=(8, 4, 3), strides=(4, 2, 2))
    assert (short.hop, short.field) == (16, 8 + 4 * 3 + 8 * 2)
    for samples in range(short.field, 200):
        assert short.frames(samples) == (samples - short.field) // short.hop + 1


def test_wav2vec2_starts_as_officially():
    torch.manual_seed(0)
    encoder = Wav2Vec2Encoder(WAVES, dim=256, depth=1, heads=4, conv_dim=64)
    convs = encoder.feature_extractor["conv_layers"]
    for conv in (convs[1].conv, convs[6].conv):
        fan_in = conv.in_channels * conv.kernel_size[0]
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert conv.bias is None
    place = encoder.encoder["pos_conv_embed"].conv
    assert place.weight.std().item() == pytest.approx((4 / (128 * 256)) ** 0.5, rel=0.05)
    assert place.parametrizations.weight.original0.shape == (1, 1, 128)  # a norm of each place
    layer = encoder.encoder["layers"][0]
    for linear in (layer.attention["q_proj"], layer.feed_forward["output_dense"]):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()
    vector = encoder.masked_spec_embed
    assert 0 <= vector.min() < 0.1 < 0.9 < vector.max() <= 1


def test_layers_are_passed_by_in_training_alone_as_often_as_said():
    encoder = wav2vec2(layer_drop=0.4)
    before, after = torch.zeros(1), torch.ones(1)
    kept = torch.cat([encoder.passed_by(after, before) for _ in range(2000)]).mean().item()
    assert kept == pytest.approx(0.6, abs=0.05)  # 4.5 sigma
    assert torch.equal(encoder(waves()).detach().isfinite(), torch.ones(3, 32, dtype=torch.bool))
    encoder.eval()
    torch.testing.assert_close(encoder(waves()), encoder(waves()))
    assert encoder.passed_by(after, before) is after


def test_dropout_is_of_training_alone():
    encoder, plain = wav2vec2(dropout=0.2), wav2vec2()
    assert not torch.equal(encoder(waves()), encoder(waves()))
    torch.testing.assert_close(encoder.eval()(waves()), plain.eval()(waves()))


def slow_ntt(encoder, specs):
    """AudioNTT2020 of nttcslab/byol-a, from its parts, time step by time step."""
    x = specs
    for i in range(3):
        conv, norm = encoder.features[4 * i], encoder.features[4 * i + 1]
        x = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
        x = torch.nn.functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias
        )
        x = torch.nn.functional.max_pool2d(x.clamp_min(0), 2)
    steps = []
    for t in range(x.shape[3]):
        flat = x[:, :, :, t].transpose(1, 2).flatten(1)  # mels, then channels
        steps.append(encoder.fc[3](encoder.fc[0](flat).clamp_min(0)).clamp_min(0))
    stacked = torch.stack(steps)
    return stacked.max(0).values + stacked.mean(0)


def test_audio_ntt_pools_over_time():
    torch.manual_seed(0)
    encoder = AudioNTT(MELS, dim=24, base_dim=8).eval()
    specs = torch.randn(2, 1, 32, 48)
    torch.testing.assert_close(encoder(specs), slow_ntt(encoder, specs))
    longer = torch.cat([specs, specs], dim=3)  # any number of frames
    assert encoder(longer).shape == (2, 24)
    full = AudioNTT(ViewSpec("global", 2, "CFT", (1, 64, 96)))
    assert full.fc[0].weight.shape == (2048, 64 * 8)


def test_a_vit_takes_spectrograms():
    settings = {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    vit = build_encoder(Entry("vit_tiny", settings | {"pos_embed": "sincos"}), MELS)
    tokens = vit.tokens(torch.randn(2, 1, 32, 48))
    assert tokens.shape == (2, 1 + 2 * 3, 24)
    assert torch.equal(vit.model.pos_embed, sincos(24, (2, 3)))
    assert vit.maps(torch.randn(2, 1, 32, 48)).shape == (2, 24, 2, 3)
    assert vit.blueprint.arguments["img_size"] == (32, 48)
    assert vit.blueprint.arguments["in_chans"] == 1


def test_a_narrow_resnet_takes_spectrograms():
    resnet = build_encoder(Entry("cifar_resnet", {"width": 8, "blocks": [1] * 4}), MELS)
    assert resnet(torch.randn(2, 1, 32, 48)).shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "settings", "view", "message"),
    [
        ("wav2vec2", {}, MELS, "not waveforms of axes T; choose a backbone"),
        ("wav2vec2", {}, ViewSpec("wave", 1, "T", (399,)), "views 'wave' of 399 samples are too"),
        ("wav2vec2", {"kernels": [3, 3], "strides": [2]}, WAVES, r"kernels = \[3, 3\] and strides"),
        ("wav2vec2", {"kernels": [3], "strides": [0]}, WAVES, r"strides = \(0,\): is below 1"),
        ("wav2vec2", {"heads": 5}, WAVES, "dim = 768 is no multiple of heads = 5"),
        ("audio_ntt", {}, square(32), "not spectrograms of axes CFT; choose a backbone"),
        ("audio_ntt", {}, ViewSpec("a", 1, "CFT", (1, 7, 48)), "smaller than 8 x 8"),
        ("resnet18", {}, MELS, "resnet18 takes 3 channels; views 'global' are 1 x 32 x 48"),
        ("vit_tiny", {"patch_size": 20}, MELS, r"image size \(32, 48\) is no multiple"),
    ],
)
def test_backbones_refuse_views_of_another_kind(name, settings, view, message):
    with pytest.raises(RecipeError, match=rf"r\.yaml:3: {name}(: .*|\.){message}"):
        build_encoder(Entry(name, settings, "r.yaml:3"), view)


def test_pictures_need_a_height():
    with pytest.raises(ContractError, match="views 'wave' have the axes T"):
        build_encoder(Entry("vit_tiny", {}), WAVES)
