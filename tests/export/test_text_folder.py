"""Encoders of text as folders of transformers, loaded by it, and taken back by `train --from`."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sslpipe.batch import BatchSpec, TargetSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.errors import SslpipeError, StateError
from sslpipe.export import ExportSettings, checks, export_checkpoint, text_folder
from sslpipe.modalities.text.trained import TrainedVocabulary
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.modalities.text.vocabulary import VOCABULARIES
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.sections import recipe_text
from sslpipe.shards.manifest import open_manifest
from sslpipe.train import initial_method
from sslpipe.train.checkpoint import Checkpoint, view_record, write_checkpoint
from sslpipe.train.warm_start import fill, read_weights

from ..conftest import room

LENGTH = 24
RECIPE = """
modality: text
stream: {{batch_size: 4, rows: {{packing: best_fit}}}}
views:
  tokens:
    ops: [Tokens: {{length: {length}, vocabulary: {vocabulary}, begin: {begin}, end: true}}]
{targets}
method: {method}
train: {{backbone: {backbone}, optimizer: {{adamw: {{lr: 0.1}}}}, epochs: 1}}
"""
MLM = "targets: {mlm: {view: tokens, task: mlm}}"
SIZES = "dim: 32, depth: 2, heads: 4"
CASES = {  # method, backbone, targets, vocabulary, begin
    "causal_lm": ("causal_lm", f"{{gpt: {{{SIZES}}}}}", "", "bytes", "false"),
    "mlm": ("mlm", f"{{bert: {{{SIZES}}}}}", MLM, "bytes", "true"),
    "simcse": ("simcse", f"{{bert: {{{SIZES}, dropout: 0.1}}}}", "", "bytes", "true"),
    "electra": ("electra", f"{{bert: {{{SIZES}, embedding: 16}}}}", MLM, "bytes", "true"),
    "t5": (
        "t5", f"{{t5: {{{SIZES}, width: 48}}}}", "targets: {t5: {view: tokens, task: t5}}",
        "bytes_t5", "false",
    ),
}  # fmt: skip
HF = ExportSettings(("hf",))


def recipe_of(method, backbone, targets, vocabulary, begin, length=LENGTH):
    text = RECIPE.format(
        method=method, backbone=backbone, targets=targets, vocabulary=vocabulary, begin=begin,
        length=length,
    )  # fmt: skip
    return parse_recipe(text)


def view_of(size, length=LENGTH):
    return ViewSpec("tokens", 1, "L", (length,), torch.int64, vocabulary=size)


def saved(path, case, *, vocabulary=None, files=""):
    """A checkpoint of a method of text, as the trainer writes it, and the method."""
    settings = CASES[case]
    if vocabulary is not None:
        settings = (*settings[:3], str(vocabulary[0]), settings[4])
    size = vocabulary[1] if vocabulary else VOCABULARIES[settings[3]].size
    recipe, view = recipe_of(*settings), view_of(size)
    targets = {name: TargetSpec("tokens", 1, size, (LENGTH,)) for name in recipe.targets}
    method = initial_method(recipe, BatchSpec(4, 4, {"tokens": view}, {}, targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in method.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    content = Checkpoint(
        recipe=recipe_text(recipe), fingerprint=recipe.fingerprint, view=view_record(view), step=7,
        stream={"manifest": "b2:data", "recipe": f"b2:1 {files}"},
        encoder=method.encoder.state_dict(), method=method.state_dict(), optimizer={}, scaler={},
        torch="2",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, content)
    return method.eval()


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """By case: the method and the folder."""
    root, made = tmp_path_factory.mktemp("text"), {}
    for case in CASES:
        method = saved(root / case / "last.pt", case)
        found = export_checkpoint(root / case, root / f"{case}_out")
        assert (found.formats, dict(found.obstacles), found.unchecked) == (("hf",), {}, ())
        made[case] = method, root / f"{case}_out"
    return made


def whole(tokens):
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    return torch.stack([torch.zeros_like(tokens), places])


def rows(size):
    return torch.randint(4, size, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_auto_model_gives_the_hidden_states(exports, case):
    from transformers import AutoModel

    method, folder = exports[case]
    model, tokens = AutoModel.from_pretrained(folder).eval(), rows(260)
    expected = method.encoder.hidden(tokens, whole(tokens))
    read = model.get_encoder() if case == "t5" else model
    torch.testing.assert_close(read(tokens).last_hidden_state, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_output_layers_go_with_their_encoders(exports):
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
        AutoModelForSeq2SeqLM,
    )

    tokens = rows(260)
    close = {"rtol": 0, "atol": 1e-5}
    method, folder = exports["mlm"]
    word = method.encoder.word.weight
    states = method.encoder.hidden(tokens, whole(tokens))
    logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(tokens).logits
    torch.testing.assert_close(logits, method.head(states, word), **close)
    method, folder = exports["electra"]
    scores = AutoModelForPreTraining.from_pretrained(folder).eval()(tokens).logits
    expected = method.head(method.encoder.hidden(tokens, whole(tokens)))[..., 0]
    torch.testing.assert_close(scores, expected, **close)
    method, folder = exports["causal_lm"]
    logits = AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits
    states = method.encoder.hidden(tokens, whole(tokens))
    torch.testing.assert_close(logits, states @ method.encoder.word.weight.T, **close)
    method, folder = exports["t5"]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert model.generate(tokens, max_new_tokens=3).shape[0] == 2  # starts by itself
    logits = model(input_ids=tokens, decoder_input_ids=tokens).logits
    none, read = torch.zeros_like(tokens), method.encoder.hidden(tokens, whole(tokens))
    states = method.encoder.written(tokens, none, read, none) / 32**0.5
    torch.testing.assert_close(logits, states @ method.encoder.word.weight.T, **close)


@torch.no_grad()
def test_packed_rows_in_transformers_as_the_card_says(exports):
    from transformers import AutoModel

    method, folder = exports["mlm"]
    tokens, documents = rows(260)[:1], torch.tensor([[0] * 9 + [1] * (LENGTH - 9)])
    places = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)])[None]
    expected = method.encoder.hidden(tokens, torch.stack([documents, places]))
    mask = (documents[:, :, None] == documents[:, None])[:, None]
    model = AutoModel.from_pretrained(folder).eval()
    found = model(tokens, attention_mask=mask, position_ids=places).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    plain = model(tokens, position_ids=places).last_hidden_state
    assert (plain - expected).abs().max() > 0.01


@pytest.mark.parametrize("case", CASES)
def test_auto_tokenizer_gives_what_the_run_saw(exports, case):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exports[case][1])
    vocabulary, begin = VOCABULARIES[CASES[case][3]], [1] * (CASES[case][4] == "true")
    assert len(tokenizer) == vocabulary.size
    for text in ("a", "é<s> <mask>\n", "<extra_id_0></s>"):
        assert tokenizer(text)["input_ids"] == [*begin, *vocabulary.encode(text).tolist(), 2]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert len(tokenizer("x" * 99, truncation=True)["input_ids"]) == LENGTH
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 3)


def test_a_trained_vocabulary_goes_along_and_a_changed_one_is_told(texts, tmp_path):
    from transformers import AutoTokenizer

    settings = TrainSettings(kind="wordpiece", size=60)
    data = train_vocabulary(open_manifest(texts), settings).data
    file = tmp_path / "tokenizer.json"
    file.write_bytes(data)
    vocabulary = TrainedVocabulary("here", data)
    saved(tmp_path / "run/last.pt", "mlm", vocabulary=(file, 60),
          files=f"vocabulary {vocabulary.fingerprint}")  # fmt: skip
    export_checkpoint(tmp_path / "run", tmp_path / "out", HF)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "many small documents, [MASK] and <mask>"
    assert tokenizer(text)["input_ids"] == [1, *vocabulary.encode(text).tolist(), 2]
    assert tokenizer.unk_token_id == 4
    file.write_bytes(data + b"\n")
    export_checkpoint(tmp_path / "run", tmp_path / "out", HF)
    assert not (tmp_path / "out/tokenizer.json").exists()
    assert "tokenizer.json was changed since the run" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("case", CASES)
def test_train_from_takes_an_export_back(exports, case):
    method, folder = exports[case]
    recipe = recipe_of(*CASES[case])
    view = view_of(VOCABULARIES[CASES[case][3]].size)
    fresh = build_encoder(recipe.train.backbone, view)
    said = fill(fresh, read_weights(folder))
    ours, theirs = fresh.state_dict(), method.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    heads = {"mlm": "; left out cls", "electra": "; left out discriminator_predictions"}
    assert said.startswith(f"starts from {folder}: {len(ours)} tensors, b2:")
    assert said.endswith(heads.get(case, said[-6:]))


@pytest.mark.parametrize(
    ("backbone", "length", "size", "words"),
    [
        ("{gpt: {dim: 32, depth: 2, heads: 2}}", LENGTH, 260,
         r"has heads 4, not 2; set train.backbone to {gpt: {dim: 32, depth: 2, heads: 4}}$"),
        ("{gpt: {dim: 64, depth: 3, heads: 4}}", LENGTH, 260,
         r"has dim 32, not 64, depth 2, not 3, width 128, not 256; set"),
        ("{bert: {dim: 32, depth: 2, heads: 4}}", LENGTH, 260,
         r"is a gpt2, the backbone a BERT; set train.backbone to {gpt: {dim"),
        ("{gpt: {dim: 32, depth: 2, heads: 4}}", LENGTH, 360,
         r"knows 260 tokens, the recipe's vocabulary has 360; set vocabulary to"),
        ("{gpt: {dim: 32, depth: 2, heads: 4}}", 25, 260,
         r"positions for 24 tokens, rows have 25; set the length of Tokens to 24 or less"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(exports, backbone, length, size, words):
    recipe = recipe_of("causal_lm", backbone, "", "bytes", "false")
    fresh = build_encoder(recipe.train.backbone, view_of(size, length))
    with pytest.raises(StateError, match=words) as error:
        fill(fresh, read_weights(exports["causal_lm"][1]))
    assert "\n" not in str(error.value)


def test_shorter_rows_take_the_first_positions(exports):
    method, folder = exports["causal_lm"]
    recipe = recipe_of(*CASES["causal_lm"])
    fresh = build_encoder(recipe.train.backbone, view_of(260, 10))
    assert "; the first 10 of 24 positions" in fill(fresh, read_weights(folder))
    assert torch.equal(fresh.wpe.weight, method.encoder.wpe.weight[:10])


def test_a_config_of_another_model_is_told_before_weights_are_read(exports, tmp_path):
    config = json.loads((exports["t5"][1] / "config.json").read_text())
    for change, words in (
        ({"feed_forward_proj": "gated-gelu"}, "has feed_forward_proj: gated-gelu, which t5 cannot"),
        ({"num_heads": None}, "does not say num_heads; restore"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(StateError, match=words):
            read_weights(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StateError, match="is no JSON object"):
        read_weights(tmp_path)


def test_a_checkpoint_that_transformers_saved_starts_a_run(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=260, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    recipe = recipe_of(*CASES["causal_lm"])
    fresh = build_encoder(recipe.train.backbone, view_of(260)).eval()
    fill(fresh, read_weights(tmp_path))
    tokens = rows(260)
    with torch.no_grad():
        expected = theirs.transformer(tokens).last_hidden_state
        found = fresh.hidden(tokens, whole(tokens))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_card_and_its_head(exports):
    head, text = {}, {}
    for case, (_, folder) in exports.items():
        text[case] = (folder / "README.md").read_text()
        head[case] = yaml.safe_load(text[case].split("---\n")[1])
        assert head[case]["library_name"] == "transformers"
        assert str(folder) not in text[case]
        assert "b2:data" in text[case]
    tasks = {case: found["pipeline_tag"] for case, found in head.items()}
    assert (tasks["causal_lm"], tasks["mlm"]) == ("text-generation", "fill-mask")
    assert tasks["simcse"] == "feature-extraction"
    assert "after 7 steps of 4 rows of 24 tokens" in text["mlm"]
    assert "with `<s>` and `</s>` around it" in text["mlm"]
    assert "with `</s>` around it" in text["causal_lm"]
    assert "`transformers.ElectraForPreTraining" in text["electra"]
    config = json.loads((exports["causal_lm"][1] / "config.json").read_text())
    assert config["bos_token_id"] is None  # no document began with one


def test_other_states_are_noticed(tmp_path, monkeypatch):
    saved(tmp_path / "last.pt", "causal_lm")
    write = text_folder.write_json

    def lie(path, content):
        write(path, {**content, "layer_norm_epsilon": 0.5} if "n_embd" in content else content)

    monkeypatch.setattr(text_folder, "write_json", lie)
    with pytest.raises(
        SslpipeError, match=r"in transformers .* features differ by .*; nothing was"
    ):
        export_checkpoint(tmp_path, tmp_path / "out", HF)
    assert not (tmp_path / "out").exists()


def test_without_transformers_nothing_is_checked(tmp_path, monkeypatch):
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(
        checks.importlib.util,
        "find_spec",
        lambda name: None if name == "transformers" else find(name),
    )
    saved(tmp_path / "last.pt", "causal_lm")
    assert export_checkpoint(tmp_path, tmp_path / "out", HF).unchecked == ("hf",)


def test_formats_of_pictures_are_refused(tmp_path):
    saved(tmp_path / "last.pt", "causal_lm")
    for name in ("timm", "onnx"):
        with pytest.raises(SslpipeError, match=f"not as {name}: it is an encoder of text; .*: hf$"):
            export_checkpoint(tmp_path, tmp_path / "out", replace(HF, formats=(name,)))


def test_weights_have_the_names_of_transformers(exports):
    names = {
        case: {*load_file(folder / "model.safetensors")} for case, (_, folder) in exports.items()
    }
    assert "wte.weight" in names["causal_lm"]
    assert {"bert.embeddings.LayerNorm.bias", "cls.predictions.bias"} <= names["mlm"]
    assert "embeddings.LayerNorm.bias" in names["simcse"]
    assert "electra.embeddings_project.weight" in names["electra"]
    assert not [n for n in names["electra"] if "generator" in n]


@pytest.mark.parametrize(
    ("size", "told"), [(500, "File too large"), (20_000, r"File too large: '.*out'$")]
)
def test_a_full_disk_is_an_error_of_the_system_and_nothing_is_left(tmp_path, size, told):
    """Of the weights, too, which another library writes and fails to in its own words."""
    saved(tmp_path / "last.pt", "mlm")
    with room(size), pytest.raises(OSError, match=told):
        export_checkpoint(tmp_path / "last.pt", tmp_path / "out", HF)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
