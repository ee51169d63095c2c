"""The folder: what it holds, which formats, which branch, and what it never replaces."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from sslpipe.encoders.central_view import CentralView
from sslpipe.errors import ExtraError, SslpipeError, StateError
from sslpipe.export import ExportSettings, export_checkpoint, folder, formats
from sslpipe.export.model_card import CardRow, read_measures
from sslpipe.export.preprocessing import central_view
from sslpipe.export.writers import as_timm_says
from sslpipe.recipe import load_recipe, parse_recipe

from .saved import BYOL, DINO, TINY, recipe_of, saved

TIMM = ExportSettings(formats=("timm",))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of a tiny ViT by DINO, and its method."""
    path = tmp_path_factory.mktemp("run")
    return path, saved(path / "last.pt", TINY % "", method=DINO)


def same(state, module):
    return all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_files_and_what_they_say(run, tmp_path):
    path, method = run
    rows = (CardRow("knn top-1", 0.5, "k = 20"),)
    settings = ExportSettings(formats=("hf", "timm"), license_name="cc-by-4.0", measures=rows)
    made = export_checkpoint(path / "last.pt", tmp_path / "mine", settings)
    assert (made.branch, made.formats, dict(made.obstacles)) == ("teacher", ("timm", "hf"), {})
    names = ["README.md", "config.json", "model.safetensors", "preprocessing.json", "recipe.yaml"]
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == names
    state = load_file(tmp_path / "mine/model.safetensors")
    assert same(state, method.teacher.encoder.model)
    recipe = recipe_of(TINY % "", method=DINO)
    kept = parse_recipe((tmp_path / "mine/recipe.yaml").read_text())
    assert kept.fingerprint == recipe.fingerprint
    with safe_open(tmp_path / "mine/model.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["fingerprint"], said["data"], said["step"]) == (recipe.fingerprint, "b2:data", "7")
    view = json.loads((tmp_path / "mine/preprocessing.json").read_text())
    assert view == {
        "size": [32, 32], "resize": 32, "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26],
        "interpolation": "bicubic",
    }  # fmt: skip


def test_all_files_are_open_to_whom_the_umask_opens_them(run, tmp_path):
    before = os.umask(0o027)
    try:
        export_checkpoint(run[0] / "last.pt", tmp_path / "mine", TIMM)
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "mine").iterdir()}
    assert modes == {0o640}
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o750


def test_the_card_has_a_head_that_hubs_read(run, tmp_path):
    rows = (CardRow("knn top-1", 0.51234, "k = 20"),)
    export_checkpoint(run[0], tmp_path / "mine", ExportSettings(("timm",), measures=rows))
    text = (tmp_path / "mine/README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["library_name"]) == ("other", "timm")
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.5123
    for words in (
        "| knn top-1 | 0.5123 | k = 20 |",
        "`dino` (teacher)",
        "b2:data",
        "local-dir:mine",
    ):
        assert words in text
    assert str(tmp_path) not in text
    other = ExportSettings(("timm",), license_name="mit")
    export_checkpoint(run[0], tmp_path / "mine", other)
    again = (tmp_path / "mine/README.md").read_text()
    assert yaml.safe_load(again.split("---\n")[1])["license"] == "mit"
    assert "Measured" not in again
    assert (
        json.loads((tmp_path / "mine/config.json").read_text())["pretrained_cfg"]["license"]
        == "mit"
    )


def test_the_card_tells_whose_weights_training_began_with(run, tmp_path):
    export_checkpoint(run[0], tmp_path / "cold", TIMM)
    assert "- began from: random weights\n" in (tmp_path / "cold/README.md").read_text()
    start = {"source": "/home/somebody/vit.pth", "digest": "b2:77"}
    saved(tmp_path / "last.pt", TINY % "", start=start)
    export_checkpoint(tmp_path, tmp_path / "warm", TIMM)
    text = (tmp_path / "warm/README.md").read_text()
    assert "- began from: `vit.pth`, weights `b2:77`\n" in text
    assert "somebody" not in text


@pytest.mark.parametrize(
    ("method", "auto", "place"),
    [(DINO, "teacher", "teacher.encoder"), (BYOL, "student", "online.0")],
)
def test_auto_is_what_the_paper_evaluates(tmp_path, method, auto, place):
    made = saved(tmp_path / "last.pt", TINY % "", method=method)
    found = export_checkpoint(tmp_path, tmp_path / "out", TIMM)
    assert found.branch == auto
    assert same(load_file(tmp_path / "out/model.safetensors"), made.get_submodule(place).model)


def test_a_branch_can_be_chosen_by_name(run, tmp_path):
    path, method = run
    found = export_checkpoint(path, tmp_path / "out", ExportSettings(("timm",), branch="student"))
    state = load_file(tmp_path / "out/model.safetensors")
    assert found.branch == "student"
    assert same(state, method.student.encoder.model)
    assert not same(state, method.teacher.encoder.model)


def test_a_branch_that_is_not_there(run, tmp_path):
    saved(tmp_path / "last.pt", TINY % "")
    for branch, path, known in (
        ("teacher", tmp_path, "student"),
        ("x", run[0], "teacher, student"),
    ):
        with pytest.raises(SslpipeError, match=f"no '{branch}'; --from takes auto, {known}$"):
            export_checkpoint(path, tmp_path / "out", ExportSettings(branch=branch))
    assert not (tmp_path / "out").exists()


def test_a_cifar_stem_is_for_no_library_by_name(tmp_path):
    for number, backbone in enumerate(("{resnet18: {stem: cifar}}", "{cifar_resnet: {width: 8}}")):
        method = saved(tmp_path / f"{number}/last.pt", backbone)
        assert {*formats.obstacles(method.encoder)} == {"timm", "hf", "torchvision"}
        with pytest.raises(
            SslpipeError, match=r"not as hf: no name and arguments of timm .*: onnx$"
        ):
            export_checkpoint(tmp_path / f"{number}", tmp_path / "out", ExportSettings(("hf",)))


def test_formats_that_are_none_or_lack_a_package(run, tmp_path, monkeypatch):
    for name, words in (
        ("tim", "did you mean 'timm'"),
        ("torchvision", "is a model of timm; what"),
    ):
        with pytest.raises(SslpipeError, match=words):
            export_checkpoint(run[0], tmp_path / "out", ExportSettings((name,)))
    monkeypatch.setattr(formats, "ONNX_MODULES", ("onnx", "not_a_module_of_ours"))
    with pytest.raises(ExtraError, match=r"not as onnx: not_a_module_of_ours not installed \(pip"):
        export_checkpoint(run[0], tmp_path / "out", ExportSettings(("onnx",)))
    made = export_checkpoint(run[0], tmp_path / "out")  # all that can be
    assert made.formats == ("timm", "hf")
    assert {*made.obstacles} == {"torchvision", "onnx"}


def test_an_export_is_replaced_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    export_checkpoint(run[0], out, TIMM)
    (out / "stale.txt").touch()
    export_checkpoint(run[0], out, TIMM)
    assert not (out / "stale.txt").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all")
    with pytest.raises(SslpipeError, match="is a folder with other things in it"):
        export_checkpoint(run[0], mine, TIMM)
    export_checkpoint(run[0], mine, ExportSettings(("timm",), overwrite=True))
    assert (tmp_path / "mine.before/thesis.tex").read_text() == "all"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["mine", "mine.before", "out"]
    with pytest.raises(SslpipeError, match="is a file; an export is a folder"):
        export_checkpoint(run[0], tmp_path / "mine.before/thesis.tex", TIMM)
    with pytest.raises(SslpipeError, match="is the root of all folders"):
        export_checkpoint(run[0], Path("/"), ExportSettings(("timm",), overwrite=True))
    with pytest.raises(SslpipeError, match="there is no folder"):
        export_checkpoint(run[0], tmp_path / "no/out", TIMM)


def test_the_folder_one_stands_in(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_checkpoint(run[0], Path(), TIMM)
    assert "# here\n" in (tmp_path / "here/README.md").read_text()


def test_what_was_there_comes_back_if_the_last_step_fails(run, tmp_path, monkeypatch):
    export_checkpoint(run[0], tmp_path / "out", TIMM)
    (tmp_path / "out/mine.txt").touch()
    rename = Path.rename

    def full(path, target):
        if path.name.startswith(".out.part"):
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        export_checkpoint(run[0], tmp_path / "out", TIMM)
    assert [place.name for place in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/mine.txt").exists()


def test_a_library_that_makes_another_model_is_noticed(run, tmp_path, monkeypatch):
    write = folder.write_config

    def lie(path, *rest):
        write(path, *rest)
        config = json.loads(path.read_text())
        config["model_args"]["global_pool"] = "avg"
        path.write_text(json.dumps(config))

    monkeypatch.setattr(folder, "write_config", lie)
    with pytest.raises(SslpipeError, match=r"in timm .* features differ by .*; nothing was"):
        export_checkpoint(run[0], tmp_path / "out", TIMM)
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_are_none(tmp_path):
    with pytest.raises(StateError, match=r"last\.pt: there is no checkpoint"):
        export_checkpoint(tmp_path, tmp_path / "out", TIMM)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"untrained": {}}', "'trained'"),
        ('{"trained": {"knn": "good"}}', "knn is 'good'"),
        ('{"trained": {"knn": NaN}}', "knn is nan"),
    ],
)
def test_measures_that_are_none(tmp_path, text, words):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(SslpipeError, match=f"holds no measures of a 'trained'.*{words}"):
        read_measures(tmp_path / "m.json")
    with pytest.raises(SslpipeError, match="cannot be read"):
        read_measures(tmp_path / "none.json")


def test_measures_with_and_without_protocols(tmp_path):
    (tmp_path / "m.json").write_text(
        '{"trained": {"knn top-1": 0.5, "linear top-1": {"value": 0.75, "protocol": "C = 1"}}}'
    )
    assert read_measures(tmp_path / "m.json") == (
        CardRow("knn top-1", 0.5, ""), CardRow("linear top-1", 0.75, "C = 1"),
    )  # fmt: skip


def test_timm_resizes_as_the_evaluation_does():
    """The floor that timm takes must not fall to the pixel below."""
    for size in range(8, 1024):
        for resize in (size, round(size * 256 / 224), size + 1):
            view = CentralView((size, size), resize, (0, 0, 0), (1, 1, 1), "bicubic")
            assert math.floor(size / view.crop_pct) == resize


def test_views_of_recipes_without_normalisation():
    view = central_view(load_recipe("pipelines/image/simclr.yaml"))
    assert view == CentralView((224, 224), 256, (0.0,) * 3, (1.0,) * 3, "bicubic")


def test_views_that_squeeze():
    text = "stream: {batch_size: 1}\nviews: {global: {ops: [Resize: {size: [32, 48]}]}}"
    view = central_view(parse_recipe(text))
    assert view == CentralView((32, 48), None, (0.0,) * 3, (1.0,) * 3, view.interpolation)
    said = as_timm_says(view)
    assert (said["crop_mode"], said["crop_pct"], said["input_size"]) == ("squash", 1.0, [3, 32, 48])


@pytest.mark.slow
def test_onnx_runtime_gives_the_features_for_any_batch(run, tmp_path):
    import onnxruntime

    path, method = run
    made = export_checkpoint(path, tmp_path / "out", ExportSettings(("onnx",)))
    assert made.unchecked == ()
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    for count in (1, 8):
        images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        (features,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            mine = method.encoder.eval()(images)
        torch.testing.assert_close(torch.from_numpy(features), mine, rtol=1e-5, atol=1e-5)
