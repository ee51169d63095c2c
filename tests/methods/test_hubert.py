"""HuBERT's loss against a slow transcription of the official one, its encoder against theirs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sslpipe.batch import IGNORED, Batch, BatchSpec, MaskSpec, TargetSpec, ViewSpec
from sslpipe.encoders.wav2vec2 import Wav2Vec2Encoder
from sslpipe.errors import ContractError, RecipeError
from sslpipe.methods import build_method
from sslpipe.methods.hubert import HuBERT, cosine_logits, hubert_loss
from sslpipe.recipe.names import Entry

SAMPLES, FRAMES, CLASSES = 3600, 11, 6
SIZES = {"dim": 32, "depth": 2, "heads": 4, "conv_dim": 16, "position_kernel": 16,
         "position_groups": 4}  # fmt: skip


def spec_of(size=3, **changes):
    mask = MaskSpec("wave", 1, "T", (320,), (FRAMES,), None)
    target = replace(TargetSpec("wave", 1, CLASSES, (FRAMES,)), **changes)
    views = {"wave": ViewSpec("wave", 1, "T", (SAMPLES,))}
    return BatchSpec(size, size, views, {"spans": mask}, {"frame_labels": target})


def batch_of(size=3, seed=0, lengths=None):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(1, size, FRAMES, generator=generator) < 0.5
    labels = torch.randint(CLASSES, (1, size, FRAMES), generator=generator)
    labels[0, -1, -2:] = IGNORED  # the recording ends before
    uids = torch.arange(size)
    return Batch(
        views={"wave": torch.rand(1, size, SAMPLES, generator=generator) - 0.5},
        masks={"spans": hidden}, hidden={"spans": hidden.sum(-1).numpy()},
        targets={"frame_labels": labels}, labels=uids, params={}, uids=uids, keys=("",) * size,
        valid=torch.ones(size, dtype=torch.bool), epoch=0, step=0,
        lengths={} if lengths is None else {"wave": torch.tensor([lengths])},
    )  # fmt: skip


def method_of(**settings):
    torch.manual_seed(0)
    spec = spec_of()
    return HuBERT(Wav2Vec2Encoder(spec.views["wave"], **SIZES), spec, dim=12, **settings)


def official(pred, classes, labels, hidden, shown_weight, temperature=0.1):
    """hubert.py, compute_nce and compute_pred, and hubert_criterion.py, frame by frame."""
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for b, n in np.argwhere(labels.numpy() != IGNORED):
        own = classes[labels[b, n]]
        scores = []
        for other in (own, *classes):  # the right one first, and again among all, where it is -inf
            cosine = pred[b, n] @ other / pred[b, n].norm() / other.norm() / temperature
            same = len(scores) > 0 and torch.equal(own, other)
            scores.append(-math.inf if same else cosine.item())
        top = math.log(sum(math.exp(x) for x in scores))
        part = bool(hidden[b, n])
        sums[part] += top - scores[0]
        counts[part] += 1
    loss, size = sums[True], counts[True]
    if shown_weight > 0:
        loss, size = loss + shown_weight * sums[False], size + counts[False]
    return loss / size


@pytest.mark.parametrize("shown_weight", [0.0, 0.5, 1.0])
def test_the_loss_is_the_official_one(shown_weight):
    generator = torch.Generator().manual_seed(1)
    pred = torch.randn(3, FRAMES, 5, generator=generator, dtype=torch.float64)
    classes = torch.rand(CLASSES, 5, generator=generator, dtype=torch.float64)
    batch = batch_of()
    labels, hidden = batch.targets["frame_labels"][0], batch.masks["spans"][0]
    logits = cosine_logits(pred, classes, temperature=0.1)
    got = hubert_loss(logits, labels, hidden, shown_weight=shown_weight)
    expected = official(pred, classes, labels, hidden, shown_weight)
    assert got.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shown_weight", [0.0, 1.0])
def test_the_method_adds_the_penalty_and_asks_for_no_padding(shown_weight):
    method = method_of(shown_weight=shown_weight).eval()
    batch = batch_of(lengths=[SAMPLES, 3000, 2000])
    output = method(batch)
    encoder, hidden = method.encoder, batch.masks["spans"][0]
    features = encoder.features(batch.views["wave"][0])
    real = torch.arange(FRAMES) < torch.tensor([[11], [9], [6]])  # (n - 400) // 320 + 1
    context = encoder.context(encoder.normed(features), hidden_BN=hidden, real_BN=real)
    labels = torch.where(real, batch.targets["frame_labels"][0], IGNORED)
    pred = method.final_proj(context).detach()
    expected = official(pred, method.class_embeddings.detach(), labels, hidden, shown_weight)
    assert output.metrics["entropy"].item() == pytest.approx(expected, rel=1e-5)
    whole = expected + 10 * features.square().mean().item()
    assert output.loss.item() == pytest.approx(whole, rel=1e-5)
    asked = labels != IGNORED
    assert output.weight == (asked.sum() if shown_weight else (asked & hidden).sum())
    guess = cosine_logits(pred, method.class_embeddings, temperature=0.1).argmax(-1)
    right = (guess == labels)[asked & hidden].float().mean().item()
    assert output.metrics["accuracy"].item() == pytest.approx(right)


def test_the_encoder_is_hubert_s_of_transformers_by_name():
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        layerdrop=0,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs, method, batch = HubertModel(config).eval(), method_of().eval(), batch_of()
    method.encoder.load_state_dict(theirs.state_dict())
    waves, hidden = batch.views["wave"][0], batch.masks["spans"][0]
    expected = theirs(waves, mask_time_indices=hidden, output_hidden_states=True)
    normed = method.encoder.normed(method.encoder.features(waves))
    got = method.encoder.context(normed, hidden_BN=hidden)
    torch.testing.assert_close(got, expected.last_hidden_state, rtol=0, atol=1e-5)
    first = method.encoder.context(normed, hidden_BN=hidden, layers=1)
    torch.testing.assert_close(first, expected.hidden_states[1], rtol=0, atol=1e-5)


def test_it_learns_labels_that_can_be_guessed():
    """All frames of a waveform have one label, which is its level."""
    method, batch = method_of(penalty_weight=0.0), batch_of()
    level = torch.tensor([0.1, 1.0, 3.0])[:, None]
    batch = replace(batch, views={"wave": batch.views["wave"] * level})
    labels = torch.arange(3)[:, None].expand(3, FRAMES)
    batch = replace(batch, targets={"frame_labels": labels[None].clone()})
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        output = method(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[0] > math.log(CLASSES) - 1
    assert losses[-1] < 0.3 * losses[0]


def test_one_class_for_all_is_a_collapse():
    method, batch = method_of().eval(), batch_of()
    (sign,) = method.collapse_signs
    torch.nn.init.zeros_(method.final_proj.weight)
    method.final_proj.bias.data = method.class_embeddings[2].detach()
    metrics = {name: value.item() for name, value in method(batch).metrics.items()}
    assert metrics["guessed_classes"] == pytest.approx(1)
    assert sign(metrics, {}).bad
    assert not sign({"guessed_classes": 5.0}, {}).bad
    assert sign({}, {}) is None
    assert method.chance_loss == pytest.approx(math.log(CLASSES))


def test_errors_say_what_to_change(vit):
    encoder = method_of().encoder
    with pytest.raises(ContractError, match=r"hubert: a ViT makes no frames.*to wav2vec2"):
        HuBERT(vit, spec_of())
    with pytest.raises(ContractError, match=r"about \[12\] frames of 'wave', but masks.spans cov"):
        HuBERT(encoder, spec_of(shape=(12,)))
    with pytest.raises(ContractError, match=r"hubert needs targets\['frame_labels'\]"):
        HuBERT(encoder, replace(spec_of(), targets={}))
    entry = Entry("hubert", {"temperature": 0}, "r.yaml:9")
    with pytest.raises(RecipeError, match=r"r\.yaml:9: hubert: temperature = 0"):
        build_method(entry, encoder, spec_of())
