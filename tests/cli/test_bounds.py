"""Options and names of every kind: numbers have bounds, names are printed as they are, one line."""

import pytest
import typer

from sslpipe.cli.commands import app
from sslpipe.cli.terminal import one_line, printable
from sslpipe.errors import ShardError
from sslpipe.recipe.parse import load_recipe
from sslpipe.shards import open_manifest

from ..conftest import write_images
from .test_commands import TRAINABLE


def options(command, name=()):
    """Words of a command and each of its parameters."""
    for word, inner in (getattr(command, "commands", None) or {}).items():
        yield from options(inner, (*name, word))
    if not getattr(command, "commands", None):
        yield from ((name, parameter) for parameter in command.params)


NUMBERS = [
    pytest.param(words, parameter, id=f"{' '.join(words)} {parameter.opts[0]}")
    for words, parameter in options(typer.main.get_command(app))
    if parameter.type_descriptor.annotation in (int, float)
]


@pytest.mark.parametrize(("words", "option"), NUMBERS)
def test_every_number_has_bounds_that_libraries_can_count_to(run, words, option):
    low = [] if option.min is None else [option.min - 1]
    for value in (10**23, -(10**23), 2**63, "1e400", "nan", *low):
        _, err = run(*words, f"{option.opts[0]}={value}", code=2)
        assert "Traceback" not in err
        assert option.opts[0] in err or "Missing" in err


def test_an_error_is_one_line_whatever_a_name_holds():
    told = one_line(ShardError("a\nb\x1b[2J\r: is wrong, é; mend it"))
    assert told == r"ShardError: a\nb\x1b[2J\r: is wrong, é; mend it"
    assert one_line(FileNotFoundError(2, "No such file", "a\nb")).startswith(r"a\nb: No such file")
    assert one_line(RuntimeError("Storage size calculation overflowed")).startswith("memory: ")
    assert one_line(ValueError("array is too big; `arr.size`")).startswith("memory: ")


@pytest.mark.parametrize("name", ["a[b]", "x[", ":smile:x", "a\nb", "[red]"])
def test_names_are_no_markup(run, tmp_path, name):
    write_images(tmp_path / "photos", 3)
    out, _ = run("pack", "photos", f"{name}/[/b]", "--workers", 1, cwd=tmp_path)
    assert printable(f"wrote {name}/[/b]/manifest.json") in out
    assert open_manifest(tmp_path / name / "[/b]").samples == 3
    _, err = run("pack", f"{name}/no", "out", code=2, cwd=tmp_path)
    assert f"{name}/no".replace("\n", r"\n") in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_files_that_eval_names_are_read_before_it_encodes(run, packed, tmp_path, monkeypatch):
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    (tmp_path / "wrong").write_text("no hole\n")
    run("train", "train.yaml", "--shards", packed, "--out", "r", "--device", "cpu",
        "--max-steps", 1, cwd=tmp_path)  # fmt: skip
    monkeypatch.setattr("sslpipe.evaluate.command.cached_features", None)  # would be a trace
    for more, told in {
        ("--labels", "wrong"): "wrong:1: unknown column 'no hole'; Known",
        ("--protocols", "zero_shot", "--templates", "wrong"): "wrong: 'no hole' has no {}; write",
        ("--beside", "nowhere"): "nowhere: there is no such file, folder or model; give",
    }.items():
        assert told in run("eval", "r", packed, *more, code=2, cwd=tmp_path)[1]
    monkeypatch.setattr("sslpipe.evaluate.labelling.extract", None)
    words = ("pseudo-label", "r", packed, "--out", "o.csv", "--known", "wrong")
    assert "wrong: is not JSON" in run(*words, code=2, cwd=tmp_path)[1]
    assert load_recipe(tmp_path / "r/recipe.yaml").stream.batch_size == 8


@pytest.mark.parametrize(
    "words", [("inspect",), ("verify",), ("eval", "run"), ("tokenizer", "count")]
)
def test_a_url_is_refused_where_a_set_here_is_asked_for(run, words):
    _, err = run(*words, "http://127.0.0.1:1/set", code=2)
    assert err.startswith("error: SslpipeError: http://127.0.0.1:1/set: is a URL, and a set on")


OPTIONS = list(options(typer.main.get_command(app)))


def test_help_shows_no_bound_that_nobody_types():
    for words, option in OPTIONS:
        assert (getattr(option, "max", None) or 0) <= 2**16, words


LISTS = [
    (("eval", "run", "set"), "--protocols", "nonsense"),
    (("index", "{set}"), "--export", "nonsense"),
    (("pack", "{table}", "out"), "--columns", "nonsense=x"),
]


@pytest.mark.parametrize(("words", "option", "wrong"), LISTS)
@pytest.mark.parametrize("turn", [1, -1])
def test_names_in_a_list_count_however_often_the_option_is_given(
    run, packed, tmp_path, words, option, wrong, turn
):
    """With commas or by the option given twice: none of them is lost in silence."""
    (tmp_path / "list.csv").write_text("path,label\na.jpg,b\n")
    right = {"--protocols": "knn", "--export": "wids", "--columns": "label=y"}
    given = [word.format(set=packed, table=tmp_path / "list.csv") for word in words]
    pair = [(option, right[option]), (option, wrong)][::turn]
    result = run(*given, *pair[0], *pair[1], code=2, cwd=tmp_path)
    assert "nonsense" in result[1]


def test_labels_are_named_once_and_of_other_settings_the_last_counts(run, packed, tmp_path):
    words = ("train", "demo", "--shards", "none", "--set", "stream.labels=a", "--labels", "b")
    _, err = run(*words, code=2, cwd=tmp_path)
    assert "--labels b: `--set stream.labels=a` names labels, too; keep one" in err
    words = (
        "show",
        "demo",
        "--shards",
        packed,
        "--set",
        "stream.seed=1.5",
        "--set",
        "stream.seed=2",
    )
    run(*words, "--out", tmp_path / "a.png")
