"""What holds for every method, those to come included: a new one has to be entered here."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sslpipe import methods
from sslpipe.encoders import image

from . import every_method
from .every_method import build, make_batch, make_spec

NAMES = sorted(methods.METHODS)
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2",
    "bincount",
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Raises where a GPU's host would wait: values read, or shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in chosen)
        assert not by_mask, "boolean indexing would wait for the device"
        assert name not in WAITING, f"{name} would wait for the device"
        return func(*args, **(kwargs or {}))


def test_every_method_has_settings():
    assert set(every_method.SETTINGS) == set(methods.METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_never_waits_for_the_device(name):
    method = build(name, make_spec(4))
    for step in (0, 1):  # a full queue, and for DeepCluster the clusters of epoch 0
        method(make_batch(4, step))
        method.after_step((step + 1) / 4)
    with NoWaiting():
        output = method(replace(make_batch(4, 2), epoch=1))
        output.loss.backward()
        method.after_step(0.75)
    assert output.loss.isfinite()
    assert output.loss != 0
    assert all(metric.isfinite() and metric.shape == () for metric in output.metrics.values())
    for parameter in method.parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all()
        else:
            assert parameter.grad is None  # teachers, tokenizers


@pytest.mark.parametrize("name", NAMES)
def test_steps_run_without_any_value(name, monkeypatch):
    """The meta device has shapes only: whoever asks for a value fails."""
    # torch has no autocast for it; every region of ours is full precision anyway
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    method = build(name, make_spec(4)).to("meta")
    for step in range(3):
        batch = replace(make_batch(4, step), epoch=min(step, 1)).to("meta")
        output = method(batch)
        output.loss.backward()
        method.after_step((step + 1) / 4)
    assert output.loss.device.type == "meta"


EMBEDDINGS = ("encoder.model.cls_token", "encoder.model.pos_embed")
TOWERS = (*EMBEDDINGS, "log_scale", "text.wpe.weight")
UNDECAYED = {
    "beit": EMBEDDINGS, "simmim": EMBEDDINGS, "msn": ("prototypes_KD",),
    "clip": TOWERS, "siglip": ("bias", *TOWERS),
}  # fmt: skip
TWO_TOWERS = ("clip", "siglip")


@pytest.mark.parametrize("name", NAMES)
def test_what_each_method_exempts_from_weight_decay(name):
    """Beside biases and what is 1-D: run_beit_pretraining.py, SimMIM's optimizer.py, init_opt."""
    method = build(name, make_spec(4))
    names = {id(p): key for key, p in method.named_parameters()}
    assert sorted(names[id(p)] for p in method.undecayed_parameters()) == sorted(
        UNDECAYED.get(name, ())
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_sign_of_collapse_is_a_number_that_the_method_gives(name):
    method = build(name, make_spec(4))
    row = {key: value.item() for key, value in method(make_batch(4)).metrics.items()}
    signs = [watch(row, row) for watch in method.collapse_signs]
    assert None not in signs
    assert len({sign.name for sign in signs}) == len(signs)
    assert all(sign.said.startswith("collapse: ") for sign in signs)


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_that_is_kept_is_a_part_of_the_method(name):
    method = build(name, make_spec(4))
    assert any(part is method.encoder for part in method.modules())


def test_msn_clips_its_student_without_the_prototypes():
    method = build("msn", make_spec(4))
    ((*clipped,),) = method.clipped_together()
    everything = {id(p) for p in method.parameters() if p.requires_grad}
    assert {id(p) for p in clipped} == everything - {id(method.prototypes_KD)}


# Momentum of the last step; methods that are not here have no teacher. All start at 0.5 but I-JEPA.
LAST_MOMENTUM = {
    "byol": 1.0, "data2vec2": 0.9, "dino": 1.0, "dinov2": 1.0, "ibot": 1.0, "ijepa": 1.0,
    "moco": 0.5, "moco_v3": 1.0, "msn": 0.9,  # 4 / 5 of the way: the official stretch
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_moves_once_per_step_and_never_in_a_forward_pass(name, monkeypatch):
    method, seen, move = build(name, make_spec(4)), [], torch._foreach_lerp_

    def watched(teacher, student, weight):
        assert not {p.data_ptr() for p in teacher} & {p.data_ptr() for p in student}
        seen.append(1.0 - weight)
        move(teacher, student, weight)

    monkeypatch.setattr(torch, "_foreach_lerp_", watched)
    for step in (0, 1):  # accumulated batches
        method(make_batch(4, step)).loss.backward()
    assert seen == []
    method.after_step(1.0)
    assert seen == ([LAST_MOMENTUM[name]] if name in LAST_MOMENTUM else [])


def test_waiting_is_noticed():
    x = torch.ones(3)
    waits = (
        lambda: x.sum().item(), lambda: x[x > 0], lambda: bool(x[0]), x.nonzero,
        lambda: x.__setitem__(x > 0, torch.zeros(3)),
    )  # fmt: skip
    for wait in waits:
        with NoWaiting(), pytest.raises(AssertionError, match="would wait"):
            wait()


# 1 + patches of 16 px: 17 tokens, of 8 px: 5. (images, tokens) of each pass of a network, of
# the trained one first. One pass per network and resolution, but where batch norm shall not see
# two views together (officially a pass per view) and where a method has a single resolution.
WHOLE, BOTH = (4, 17), (8, 17)
MULTI_CROP = [BOTH, (12, 5)]
PASSES = {
    "autoencoder": [[WHOLE]],
    "barlow_twins": [[WHOLE, WHOLE]],
    "beit": [[WHOLE]],
    "byol": [[WHOLE, WHOLE], [WHOLE, WHOLE]],
    "causal_lm": [],  # of text: no ViT
    "clip": [[(4, 1 + 4)]],  # as FLIP
    "colorization": [[BOTH]],
    "data2vec2": [[(12, 1 + 4)], [WHOLE]],  # three masks of 12 of 16 patches
    "deepcluster_v2": [MULTI_CROP],
    "dino": [MULTI_CROP, [BOTH]],
    "dinov2": [MULTI_CROP, [BOTH]],
    "electra": [],
    "hubert": [],  # of waveforms
    "ibot": [MULTI_CROP, [BOTH]],
    "ijepa": [[(4, 1 + 8)], [WHOLE]],  # contexts of 8, 7, 6 and 5 patches, padded
    "inpainting": [[WHOLE]],
    "jigsaw": [[BOTH]],
    "lejepa": [MULTI_CROP],
    "mae": [[(4, 1 + 4)]],  # 12 of 16 patches hidden
    "mlm": [],
    "moco": [[WHOLE], [WHOLE]],
    "moco_v3": [[WHOLE, WHOLE], [WHOLE, WHOLE]],
    "msn": [[(4, 1 + 13), (8, 5)], [WHOLE]],  # the anchor without 3 patches, the focal crops
    "nnclr": [[BOTH]],
    "nsp": [],
    "relative_patch": [[BOTH]],
    "rotation": [[BOTH]],
    "siglip": [[(4, 1 + 4)]],
    "simclr": [[BOTH]],
    "simcse": [],
    "simmim": [[WHOLE]],
    "simsiam": [[WHOLE, WHOLE]],
    "sop": [],
    "swav": [MULTI_CROP],
    "t5": [],
    "vicreg": [[WHOLE, WHOLE]],
    "wav2vec2": [],  # of waveforms
}


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_sees_what_it_must_and_no_more(name):
    """Crops of one size in one pass; hidden patches never, where the paper drops them."""
    method, seen = build(name, make_spec(4)), {}
    networks = [m for m in method.modules() if isinstance(m, image.ViT)]
    networks.sort(key=lambda vit: not vit.model.norm.weight.requires_grad)  # teachers last
    for vit in networks:
        passes = seen.setdefault(id(vit), [])
        vit.model.blocks[0].register_forward_pre_hook(
            lambda _, inputs, passes=passes: passes.append(tuple(inputs[0].shape[:2]))
        )
    method(make_batch(4))
    assert list(seen.values()) == PASSES[name]


@pytest.mark.parametrize("name", NAMES)
def test_autocast_takes_views_of_half_precision(name):
    losses = []
    for half in (False, True):
        torch.manual_seed(0)
        method, batch = build(name, make_spec(4)), make_batch(4, 1)
        halved = {g: v.bfloat16() if v.is_floating_point() else v for g, v in batch.views.items()}
        method(make_batch(4, 0))  # DeepCluster compares from its second epoch on
        method.after_step(0.25)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = method(replace(batch, views=halved) if half else batch)
        output.loss.backward()
        losses.append(output.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.02)


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_the_towers_are_named_and_that_of_images_is_kept(name):
    method = build(name, make_spec(4))
    assert [branch for branch, _ in method.encoders] == ["image", "text"]
    towers = [method.get_submodule(place) for _, place in method.encoders]
    assert towers == [method.encoder, method.text]
    assert all(p.requires_grad for tower in towers for p in tower.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TWO_TOWERS])
def test_the_encoders_that_a_method_names_are_encoders(name):
    """The first is kept; a student is trained, a teacher is not, and starts as its copy."""
    method = build(name, make_spec(4))
    places = {branch: method.get_submodule(place) for branch, place in method.encoders}
    assert "student" in places
    assert {*places} <= {"student", "teacher"}
    assert method.encoder is next(iter(places.values()))
    copies = [m for m in method.modules() if isinstance(m, type(method.encoder))]
    assert len(copies) == len(places)  # none is kept that is not named
    state = places["student"].state_dict()
    for part in places.values():
        assert part.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
    assert any(p.requires_grad for p in places["student"].parameters())
    if "teacher" in places:
        assert not any(p.requires_grad for p in places["teacher"].parameters())
