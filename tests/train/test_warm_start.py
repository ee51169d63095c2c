"""`train --from`: what weights are taken from, what is refused, and that a run remembers them."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from sslpipe.batch import BatchSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.errors import SslpipeError, StateError
from sslpipe.export import ExportSettings, export_checkpoint
from sslpipe.recipe import parse_recipe
from sslpipe.train import initial_method
from sslpipe.train.loop import train_recipe
from sslpipe.train.warm_start import fill, read_weights

from ..export.saved import BYOL, DINO, TINY, recipe_of, saved

MOCO = "{moco_v3: {projector: [16, 8], predictor_hidden: 16}}"


def views(side):
    return BatchSpec(8, 8, {"global": ViewSpec("global", 2, "CHW", (3, side, side))}, {}, {})


def encoder(backbone, side=32):
    return build_encoder(recipe_of(backbone).train.backbone, views(side).views["global"])


def filled(start, backbone=TINY % "", side=32):
    """A fresh encoder with these weights, and the line that is said."""
    fresh = encoder(backbone, side)
    return fresh, fill(fresh, read_weights(start))


def equal(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of DINO on a tiny ViT: the teacher is what counts."""
    path = tmp_path_factory.mktemp("run")
    return path, saved(path / "last.pt", TINY % "", method=DINO)


def test_all_places_hold_the_same_weights(run, tmp_path):
    path, method = run
    teacher = method.teacher.encoder
    export_checkpoint(path, tmp_path / "out", ExportSettings(("timm",)))
    torch.save(teacher.model.state_dict(), tmp_path / "bare.pth")
    wrapped = {f"module.{name}": t for name, t in teacher.state_dict().items()}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    files = ("out/model.safetensors", "bare.pth", "wrapped.pth", "out")
    places = [path, path / "last.pt", *(tmp_path / name for name in files)]
    starts = [read_weights(place) for place in places]
    assert len({start.digest for start in starts}) == 1
    for place in places:
        fresh, said = filled(place)
        assert equal(fresh, teacher)
        assert said == f"starts from {place}: 30 tensors, {starts[0].digest}"


def test_the_digest_tells_one_changed_number(run, tmp_path):
    state = run[1].encoder.model.state_dict()
    torch.save(state, tmp_path / "a.pth")
    state["norm.bias"] = state["norm.bias"].clone()
    state["norm.bias"][3] += 1e-6
    torch.save(state, tmp_path / "b.pth")
    assert read_weights(tmp_path / "a.pth").digest != read_weights(tmp_path / "b.pth").digest


def test_a_classifier_is_left_out_and_counters_may_lack(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "r.safetensors")
    fresh, said = filled(tmp_path / "r.safetensors", "resnet18")
    assert said.endswith("; left out fc.bias, fc.weight")
    assert torch.equal(fresh.model.conv1.weight, state["conv1.weight"])


def test_positions_are_interpolated_to_another_grid(run):
    from timm.layers import resample_abs_pos_embed

    fresh, said = filled(run[0], side=48)
    assert "; positions of 4 x 4 patches interpolated to 6 x 6" in said
    old = run[1].encoder.model.pos_embed
    wanted = resample_abs_pos_embed(old, new_size=[6, 6], num_prefix_tokens=1)
    assert torch.equal(fresh.model.pos_embed, wanted)
    assert torch.equal(fresh.model.cls_token, run[1].encoder.model.cls_token)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("resnet18", r"lacks conv1.weight, bn1.weight.* and \d+ more and has blocks.0"),
        (TINY % ", layer_scale: 0.1", r"lacks blocks.0.ls1.gamma, .*; set train.backbone to what"),
        (TINY.replace("depth: 2", "depth: 1") % "", r"has blocks.1.*, which the backbone has not"),
        (
            TINY.replace("patch_size: 8", "patch_size: 4") % "",
            r"proj.weight \[24, 3, 8, 8\], not \[24",
        ),
        (TINY.replace("dim: 24", "dim: 12") % "", r"cls_token \[1, 1, 24\], not \[1, 1, 12\]"),
    ],
)
def test_other_weights_are_refused_by_their_names(run, backbone, words):
    with pytest.raises(StateError, match=words):
        filled(run[0], backbone)


def test_places_that_hold_nothing(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x09\0\0\0")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    torch.save({"state_dict": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "nested.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pth")
    for name, words in {
        "none.pth": "there are no weights; name a checkpoint",
        ".": "holds neither last.pt nor model.safetensors",
        "cut.safetensors": "is no safetensors file, or damaged",
        "cut.pth": "damaged",
        "nested.pth": "is no state dict but a dict of state_dict, epoch; save",
        "list.pth": "is no state dict but something else",
        "nan.pth": "numbers of w are not finite",
        "code.pth": "or holds more than tensors and plain data; save the state dict alone",
    }.items():
        with pytest.raises(StateError, match=words) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [DINO, BYOL, MOCO])
def test_teachers_start_as_copies_of_the_warm_student(run, method):
    """MoCo v3 draws the patch projection anew when it is built, which must not stay."""
    recipe = recipe_of(TINY % "", method=method)
    said = []
    made = initial_method(recipe, views(32), read_weights(run[0]), said.append)
    assert len(said) == 1
    for name in ("student", "teacher"):
        assert equal(made.get_submodule(dict(made.encoders)[name]), run[1].teacher.encoder)


def test_all_but_the_encoder_is_what_the_seed_says(run):
    recipe = recipe_of(TINY % "", method=DINO)
    warm = initial_method(recipe, views(32), read_weights(run[0]), [].append)
    cold = initial_method(recipe, views(32))
    assert equal(warm.student.head, cold.student.head)
    assert not equal(warm.student.encoder, cold.student.encoder)


def test_names_of_libraries(monkeypatch):
    """Without network timm's weights are as the test makes them; what fetches is pretrained.py."""
    from sslpipe.train import warm_start

    class Known:
        model = encoder(TINY % "").model

        def state_dict(self):
            return {f"model.{name}": t for name, t in self.model.state_dict().items()}

    asked = []
    monkeypatch.setattr(
        warm_start, "pretrained", lambda name: (asked.append(name), (Known(), None))[1]
    )
    fresh, _ = filled("timm:a_vit")
    assert asked == ["timm:a_vit"]
    assert equal(fresh.model, Known.model)


def test_a_name_that_no_library_has():
    with pytest.raises(SslpipeError, match="no_such_model"):
        read_weights("timm:no_such_model")


TRAINED = """
stream: {batch_size: 8}
views: {global: {count: 2, ops: [RandomResizedCrop: {size: [32, 32]}, Normalize]}}
method: {byol: {projector: [16, 8], predictor_hidden: 16}}
train:
  backbone: {vit_tiny: {patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}}
  optimizer: {sgd: {lr: 0.1}}
  epochs: 1
run: {workers: 0, threads: 1, prefetch: 0}
"""


def test_a_run_remembers_what_it_began_with(run, packed, tmp_path, capfd):
    """Resuming needs no --from, takes the same one, and no other."""
    recipe = parse_recipe(TRAINED)
    torch.save(encoder(TINY % "").state_dict(), tmp_path / "other.pth")

    def go(out, max_steps=None, start=None, resume=False):
        return train_recipe(
            recipe, shards=packed, out=tmp_path / out, resume=resume, start=start,
            max_steps=max_steps, device="cpu",
        )  # fmt: skip

    def weights(out):
        return torch.load(tmp_path / out / "last.pt", weights_only=True)

    go("whole", start=run[0])
    told = " ".join(capfd.readouterr().err.split())
    assert f"starts from {run[0]}: 30 tensors, b2:" in told
    go("killed", 2, start=run[0])
    record = {"source": str(run[0]), "digest": read_weights(run[0]).digest}
    assert weights("killed")["start"] == record
    with pytest.raises(
        StateError, match=r"began from .*, not from .*other\.pth .*; resume without"
    ):
        go("killed", start=tmp_path / "other.pth", resume=True)
    go("killed", 3, resume=True)
    go("killed", start=run[0] / "last.pt", resume=True)
    assert weights("killed")["start"] == record
    one, two = weights("whole")["method"], weights("killed")["method"]
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    go("cold", 1)
    assert weights("cold")["start"] is None
    with pytest.raises(StateError, match="began from random weights, not from"):
        go("cold", start=run[0], resume=True)
    assert not torch.equal(
        weights("cold")["encoder"]["model.pos_embed"], one["online.0.model.pos_embed"]
    )


def test_wrong_weights_are_found_before_any_data_is_read(tmp_path):
    with pytest.raises(StateError, match="there are no weights"):
        train_recipe(
            parse_recipe(TRAINED), shards="nowhere", out=tmp_path / "run", resume=False,
            start=tmp_path / "none", max_steps=1, device="cpu",
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "llama"])
def test_a_text_model_of_another_kind_is_refused_whatever_its_weights_are_called(tmp_path, kind):
    config = {"model_type": kind, "vocab_size": 99, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"embeddings.word_embeddings.weight": torch.ones(99, 8)}, tmp_path / "m.safetensors")
    with pytest.raises(StateError, match=f"is a model of type '{kind}', which no encoder of ours"):
        read_weights(tmp_path)
