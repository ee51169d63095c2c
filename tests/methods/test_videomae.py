"""MAE and I-JEPA on clips: VideoMAE, its second version, and V-JEPA, against transcriptions."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from sslpipe.batch import Batch, BatchSpec, MaskSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.encoders.patches import visible_first
from sslpipe.errors import ContractError, RecipeError
from sslpipe.masks import draw_masks
from sslpipe.masks.tube_blocks import TubeBlocks
from sslpipe.masks.tubes import RunningCell, Tube
from sslpipe.methods import build_method, ijepa, mae, simmim
from sslpipe.recipe import Entry

PATCH, GRID, SHAPE = (2, 4, 4), (2, 4, 4), (3, 4, 16, 16)
VALUES = 2 * 4 * 4 * 3
VIT = {"patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2, "pos_embed": "sincos"}
SMALL = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "norm_pix": "channel"}
V2 = SMALL | {"decoder_mask": "decoder"}
JEPA = {"predictor_dim": 16, "predictor_depth": 2, "predictor_heads": 2}
BLOCKS = TubeBlocks(blocks=(2, 1), scale=(0.15, 0.4))


def mask_of(sampler, count=1):
    return torch.from_numpy(draw_masks(sampler, grid=GRID, ids=range(3), count=count))


def batch_of(masks):
    """Three clips of 4 frames of 16 px, with these masks."""
    views = torch.rand(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    uids = torch.arange(3)
    batch = Batch(
        views={"global": views}, masks=masks,
        hidden={name: mask.sum(-1).numpy() for name, mask in masks.items()}, targets={},
        labels=uids, params={}, uids=uids, keys=("",) * 3,
        valid=torch.ones(3, dtype=torch.bool), epoch=0, step=0,
    )  # fmt: skip
    view = ViewSpec("global", 1, "CTHW", SHAPE)
    specs = {name: spec_of(mask) for name, mask in masks.items()}
    return batch, BatchSpec(3, 3, {"global": view}, specs, {})


def spec_of(mask):
    counts = np.unique(mask.sum(-1))
    hidden = int(counts[0]) if len(counts) == 1 else None
    return MaskSpec("global", len(mask), "THW", PATCH, GRID, hidden)


@pytest.fixture
def masked():
    return batch_of({"random": mask_of(Tube(ratio=0.75)), "decoder": mask_of(RunningCell())})


@pytest.fixture
def vit(masked):
    torch.manual_seed(0)
    return build_encoder(Entry("vit_tiny", VIT), masked[1].views["global"]).eval()


def slow_tubelets(clip):
    """'c (t p0) (h p1) (w p2) -> (t h w) (p0 p1 p2) c' of one clip, by loops."""
    return np.stack(
        [
            np.stack(
                [
                    clip[:, 2 * t + a, 4 * h + b, 4 * w + c]
                    for a in range(2)
                    for b in range(4)
                    for c in range(4)
                ]
            )
            for t in range(2)
            for h in range(4)
            for w in range(4)
        ]
    )


def slow_labels(clip):
    """engine_for_pretraining.py: per tubelet and channel, unbiased, 1e-6 outside the root."""
    squeezed = slow_tubelets(clip.numpy())
    mean = squeezed.mean(-2, keepdims=True)
    return ((squeezed - mean) / (squeezed.std(-2, ddof=1, keepdims=True) + 1e-6)).reshape(32, -1)


def slow_loss(pred, clips, hidden):
    errors = [
        (pred[b, n].numpy() - slow_labels(clips[b])[n]) ** 2 for b, n in hidden.nonzero().tolist()
    ]
    return float(np.mean(errors))


def test_tubelets_are_cut_in_the_official_order_and_put_back(masked):
    clips = masked[0].views["global"][0]
    patches = mae.patchify(clips, PATCH)
    assert patches.shape == (3, 32, VALUES)
    for clip, cut in zip(clips, patches, strict=True):
        assert np.array_equal(cut.numpy(), slow_tubelets(clip.numpy()).reshape(32, -1))
    assert mae.unpatchify(patches, PATCH, GRID).equal(clips)


def test_the_loss_is_videomae_s(masked, rand):
    clips, hidden = masked[0].views["global"][0], masked[0].masks["random"][0]
    pred = rand(3, 32, VALUES)
    loss = mae.mae_loss(pred, clips, hidden, patch_size=PATCH, normalise="channel")
    assert loss.item() == pytest.approx(slow_loss(pred, clips, hidden), rel=1e-5)
    # targets of normalised views are the same but for the 1e-6
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    normed = (clips - mean.view(3, 1, 1, 1)) / std.view(3, 1, 1, 1)
    other = mae.mae_loss(pred, normed, hidden, patch_size=PATCH, normalise="channel")
    assert other.item() == pytest.approx(loss.item(), rel=1e-4)
    whole = mae.mae_loss(pred, clips, hidden, patch_size=PATCH)
    assert whole.item() != pytest.approx(loss.item(), rel=1e-3)


def test_the_method_shows_the_encoder_what_tubes_leave(masked, vit):
    batch, spec = masked
    method = mae.MAE(vit, spec, **SMALL)
    seen = []
    vit.model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    output = method(batch)
    assert seen == [(3, 1 + 2 * 4, 24)]  # 4 of 16 places, at both times
    clips, hidden = batch.views["global"][0], batch.masks["random"][0]
    order = visible_first(hidden)
    pred = method.decoder(vit.tokens(clips, order[:, :8]), order).detach()
    assert output.loss.item() == pytest.approx(slow_loss(pred, clips, hidden), rel=1e-5)
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_published_sizes():
    hidden = Tube(ratio=0.9).hidden((8, 14, 14))
    assert (hidden // 8, hidden) == (176, 1408)
    view = ViewSpec("global", 1, "CTHW", (3, 16, 224, 224))
    masks = {"random": MaskSpec("global", 1, "THW", (2, 16, 16), (8, 14, 14), hidden)}
    masks["decoder"] = dataclasses.replace(masks["random"], hidden=784)
    with torch.device("meta"):
        vit = build_encoder(Entry("vit_base", {"patch_size": [2, 16, 16], "depth": 1}), view)
        method = mae.MAE(vit, BatchSpec(1, 1, {"global": view}, masks, {}), decoder_mask="decoder")
    assert (method.num_visible, method.num_asked) == (160, 784)
    assert method.decoder.predict.out_features == 1536


def by_hand(method, vit, clips, hidden, dropped):
    """modeling_pretrain.py of v2: [visible, mask tokens of the rest], the head on the last ones."""
    decoder, rows = method.decoder, []
    for clip, h, d in zip(clips, hidden, dropped, strict=True):
        tokens = vit.tokens(clip[None], (~h).nonzero().T)[0]
        places = decoder.positions[0, 1:]
        x = decoder.embed(tokens)
        full = torch.cat([x[1:] + places[~h], decoder.mask_token[0] + places[~d]])
        full = torch.cat([x[:1] + decoder.positions[0, :1], full])[None]
        rows.append(decoder.predict(decoder.norm(decoder.blocks(full)))[0, -int((~d).sum()) :])
    return torch.stack(rows)


@torch.no_grad()
def test_dual_masking_is_that_of_videomae_v2(masked, vit):
    batch, spec = masked
    method = mae.MAE(vit, spec, **V2)
    clips, hidden = batch.views["global"][0], batch.masks["random"][0]
    dropped = batch.masks["decoder"][0]
    pred = by_hand(method, vit, clips, hidden, dropped)
    assert pred.shape == (3, 16, VALUES)
    errors = []
    for b in range(3):
        labels = slow_labels(clips[b])[~dropped[b].numpy()]
        counted = hidden[b][~dropped[b]].numpy()
        errors.extend((((pred[b].numpy() - labels) ** 2).mean(-1))[counted])
    assert 0 < len(errors) < 48  # some of what is asked for is visible
    assert method(batch).loss.item() == pytest.approx(float(np.mean(errors)), rel=1e-5)


@torch.no_grad()
def test_asked_for_all_that_is_hidden_the_decoder_says_what_it_says_in_raster_order(masked, vit):
    batch, spec = masked
    decoder = mae.MAE(vit, spec, **SMALL).decoder
    order = visible_first(batch.masks["random"][0])
    tokens = vit.tokens(batch.views["global"][0], order[:, :8])
    together = decoder(tokens, order)
    asked = decoder.asked(tokens, order[:, :8], order[:, 8:])
    for b in range(3):
        torch.testing.assert_close(asked[b], together[b, order[b, 8:]])


def jepa_batch():
    masks = mask_of(BLOCKS)
    return batch_of({"context": masks, "targets": masks})


def test_v_jepa_guesses_each_target_from_its_own_context():
    batch, spec = jepa_batch()
    torch.manual_seed(0)
    vit = build_encoder(Entry("vit_tiny", VIT), spec.views["global"])
    method = ijepa.IJEPA(vit, spec, **JEPA, beta=0.0)
    torch.nn.init.normal_(method.predictor.mask_token_11D)
    together = method(batch).loss
    sums, counts = [], []
    for m in range(2):
        for b in range(3):
            one = {name: masks[m : m + 1, b : b + 1] for name, masks in batch.masks.items()}
            hidden = {name: mask.sum(-1).numpy() for name, mask in one.items()}
            views = {"global": batch.views["global"][:, b : b + 1]}
            alone = dataclasses.replace(batch, views=views, masks=one, hidden=hidden)
            count = int(one["targets"].sum())
            sums.append(method(alone).loss.item() * count)
            counts.append(count)
    assert len({*counts}) > 1
    assert together.item() == pytest.approx(sum(sums) / sum(counts), rel=1e-4)


def test_beta_0_is_the_absolute_error(rand):
    pred, target, real = rand(2, 3, 4), rand(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    loss = ijepa.ijepa_loss(pred, target, real, beta=0.0)
    torch.testing.assert_close(loss, functional.l1_loss(pred, target))


def test_refusals_say_what_to_change(masked, vit):
    _, spec = masked
    where = Entry("mae", V2 | {"decoder_window": 2}, "r.yaml:9")
    with pytest.raises(RecipeError, match=r"r\.yaml:9: mae: decoder_mask = decoder leaves no"):
        build_method(where, vit, spec)
    with pytest.raises(ContractError, match=r"mae needs masks\['other'\]"):
        mae.MAE(vit, spec, decoder_mask="other")
    one = dataclasses.replace(spec.masks["random"], patch=(1, 4, 4))
    wrong = dataclasses.replace(spec, masks={"random": one})
    with pytest.raises(ContractError, match=r"patch_size = \[1, 4, 4\], but the .* \[2, 4, 4\]"):
        mae.MAE(vit, wrong)
    units = dataclasses.replace(spec, masks={"units": spec.masks["random"]})
    with pytest.raises(ContractError, match=r"simmim masks grids of 2 axes; .* axes THW"):
        simmim.SimMIM(vit, units)
    _, jepa = jepa_batch()
    three = dataclasses.replace(jepa.masks["context"], count=3)
    many = dataclasses.replace(jepa, masks={**jepa.masks, "context": three})
    with pytest.raises(ContractError, match="one context, or one for each of the 2 targets"):
        ijepa.IJEPA(vit, many, **JEPA)
