from contextlib import suppress

import pytest
import torch

from sslpipe.errors import StateError
from sslpipe.recipe import load_recipe, parse_recipe
from sslpipe.recipe.sections import recipe_text
from sslpipe.train import checkpoint, load_encoder
from sslpipe.train.checkpoint import Checkpoint, view_record
from tests.view_specs import square

YAML = """
stream: {batch_size: 8}
views:
  global: {count: 2, ops: [RandomHorizontalFlip: {p: 0.5}, Normalize]}
method: {simclr: {temperature: 0.1, projector: [2048, 128]}}
train:
  backbone: {resnet18: {stem: cifar}}
  optimizer: {sgd: {lr: 1e-5, weight_decay: 0.000001}}
  epochs: 3
  final_lr: 1.0e-06
run: {threads: 3}
"""


VIEW = view_record(square(4))  # of toy.SIZE


def make(**changes):
    recipe = parse_recipe(YAML)
    content = {
        "recipe": recipe_text(recipe), "fingerprint": recipe.fingerprint, "view": VIEW,
        "step": 7, "stream": {"step": 14, "recipe": "b2:0"}, "encoder": {}, "optimizer": {},
        "method": {"w": torch.arange(1000.0), "b": torch.ones(3)}, "scaler": {},
        "torch": "2",
    }  # fmt: skip
    return Checkpoint(**content | changes)


def test_round_trip(tmp_path):
    saved = make()
    checkpoint.write_checkpoint(tmp_path / "last.pt", saved)
    loaded = checkpoint.read_checkpoint(tmp_path / "last.pt")
    assert (loaded.step, loaded.stream, loaded.fingerprint) == (7, saved.stream, saved.fingerprint)
    assert torch.equal(loaded.method["w"], saved.method["w"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_recipe_text_keeps_the_fingerprint():
    recipe = parse_recipe(YAML)
    again = parse_recipe(recipe_text(recipe))
    assert again.fingerprint == recipe.fingerprint
    assert again.run == recipe.run


def test_recipe_text_of_every_shipped_recipe(request):
    recipes = sorted((request.config.rootpath / "pipelines").glob("*/*.yaml"))
    assert recipes
    for path in recipes:
        recipe = load_recipe(path)
        assert parse_recipe(recipe_text(recipe)).fingerprint == recipe.fingerprint, path


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.write_checkpoint(path, make(step=1))
    with pytest.raises(StateError, match=r"hold torch\.torch_version\.TorchVersion; keep only"):
        checkpoint.write_checkpoint(path, make(stream={"version": torch.__version__}))
    assert checkpoint.read_checkpoint(path).step == 1


def test_missing(tmp_path):
    with pytest.raises(StateError, match=r"last\.pt: there is no checkpoint"):
        checkpoint.read_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_one_flipped_bit(tmp_path, where):
    path = tmp_path / "last.pt"
    checkpoint.write_checkpoint(path, make(method={"w": torch.arange(100_000.0)}))
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match=r"last\.pt: damaged .*CRC32"):
        checkpoint.read_checkpoint(path)


@pytest.mark.parametrize("kept", [0, 10, 2000])
def test_cut_off(tmp_path, kept):
    path = tmp_path / "last.pt"
    checkpoint.write_checkpoint(path, make())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StateError, match="damaged"):
        checkpoint.read_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_is_executed(tmp_path, capsys):
    torch.save({"format": 1, "step": Evil()}, tmp_path / "last.pt")
    with pytest.raises(StateError, match="more than tensors and plain data"):
        checkpoint.read_checkpoint(tmp_path / "last.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"format": 99}, {"model": {}}, [1, 2]])
def test_other_formats(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(StateError, match=r"this (sslpipe reads|one reads up to) 2"):
        checkpoint.read_checkpoint(tmp_path / "last.pt")


def test_another_recipe_is_refused(tmp_path):
    other = parse_recipe(YAML.replace("epochs: 3", "epochs: 4"))
    with pytest.raises(StateError, match=r"\(train.epochs: 3 there, 4 now\); resume with"):
        checkpoint.check_recipe(tmp_path / "last.pt", make(), other)
    faster = parse_recipe(YAML.replace("threads: 3", "threads: 1"))
    checkpoint.check_recipe(tmp_path / "last.pt", make(), faster)


def test_load_encoder(tmp_path, toy):
    encoder = toy.Encoder(6, 0.0, norm=False)
    recipe = toy.recipe()
    content = make(recipe=recipe_text(recipe), view=VIEW, encoder=encoder.state_dict())
    checkpoint.write_checkpoint(tmp_path / "last.pt", content)
    loaded, its_recipe = load_encoder(tmp_path / "last.pt")
    images = torch.randn(2, 3, toy.SIZE, toy.SIZE)
    assert torch.equal(loaded(images), encoder(images))
    assert its_recipe.fingerprint == recipe.fingerprint


def test_load_encoder_of_another_architecture(tmp_path, toy):
    encoder = toy.Encoder(5, 0.0, norm=False)
    content = make(
        recipe=recipe_text(toy.recipe()),
        view=VIEW,
        encoder=encoder.state_dict(),
    )
    checkpoint.write_checkpoint(tmp_path / "last.pt", content)
    with pytest.raises(StateError, match="its encoder is not the backbone 'toy:make_encoder'"):
        load_encoder(tmp_path / "last.pt")


def test_every_flipped_bit_of_the_directory_is_one_error(tmp_path):
    """Found by tools/fuzz.py: names in a zip's directory that are no UTF-8 any more."""
    path = tmp_path / "last.pt"
    checkpoint.write_checkpoint(path, make())
    whole = path.read_bytes()
    for place in range(whole.rindex(b"PK\x01\x02") - 300, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 0x80
        path.write_bytes(data)
        with suppress(StateError):  # what counts may be whole
            checkpoint.read_checkpoint(path)


@pytest.mark.parametrize("content", [{"format": 2}, {"format": 2, "a": 1}, [1], {"recipe": "x"}])
def test_a_file_of_torch_that_is_no_checkpoint_of_ours(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(StateError, match=r"last\.pt: (has other fields|checkpoint format None)"):
        checkpoint.read_checkpoint(tmp_path / "last.pt")
