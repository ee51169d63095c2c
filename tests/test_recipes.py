"""Every recipe that ships: parses, says what it is, honours its spec, and can take a step."""

import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import sslpipe
from sslpipe.batch import IGNORED
from sslpipe.cli.commands import app
from sslpipe.encoders import build_encoder
from sslpipe.modalities.text.vocabulary import VOCABULARIES
from sslpipe.modalities.video.codec import VideoCodec
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.shards.make.pack import PackSettings, pack
from sslpipe.stream.packing import SENTENCE_PACKERS
from sslpipe.train import initial_method
from sslpipe.train.run import check_training, prepare_run

from .modalities.audio.sounds import chirp, encoded, packed
from .modalities.video.films import film

NAMES = sorted(sslpipe.recipes())
AUDIO = [name for name in NAMES if "\nmodality: audio" in find_recipe(name).read_text()]
TEXT = [name for name in NAMES if "\nmodality: text" in find_recipe(name).read_text()]
VIDEO = [name for name in NAMES if "\nmodality: video" in find_recipe(name).read_text()]
PAIRS = [name for name, path in sslpipe.recipes().items() if path.parent.name == "image_text"]
TRAINED = [name for name in NAMES if "\nmethod:" in find_recipe(name).read_text()]
GROUPS = ["method.moco.bn_groups=2"]
TOKENS = "views.tokens.ops.0.Tokens"
SMALL_CLIPS = ["views.global.ops.1.RandomResizedCrop.size=[64, 64]"]
NARROW = [*SMALL_CLIPS, "train.backbone={r3d_50: {width: 8, blocks: [1, 1, 1, 1]}}"]
DINOV2 = ["method.dinov2.prototypes=1024"]
SHALLOW_WAVES = ["train.backbone.wav2vec2.depth=2", "train.backbone.wav2vec2.conv_dim=32"]
SHORT_WAVES = ["views.wave.ops.0.Crop.samples=48000"]
# views of a step: those that the recipe asks for are made and looked at before, without a step
SMALL_CROPS = {224: [64, 64], 96: [32, 32]}  # of ResNets, which take any
SMALL_VIEWS = {
    "videomae_base": SMALL_CLIPS,
    "videomae_v2_base": SMALL_CLIPS,
    "rho_moco_timesformer": SMALL_CLIPS,
    "hubert_base": SHORT_WAVES,
    "wav2vec2_base": SHORT_WAVES,
}
# eight groups of batch norm need more samples; the others take half a minute and 6 GB at full size
SMALLER = {
    "audiomae_base": ["method.mae.decoder_depth=2"],
    "hubert_base": SHALLOW_WAVES,
    "wav2vec2_base": SHALLOW_WAVES,
    "albert_base": ["train.backbone.albert.depth=2", f"{TOKENS}.length=64"],
    "bert_base": ["train.backbone.bert.depth=1", f"{TOKENS}.length=64"],
    "roberta_base": ["train.backbone.bert.depth=1", f"{TOKENS}.length=64"],
    **{
        f"moco_{name}": ["method.moco.bn_groups=2"] for name in ("v1", "v2", "v1_cifar", "v2_cifar")
    },
    "barlow_twins": ["method.barlow_twins.projector=[512, 512, 512]"],
    "data2vec_audio": ["masks.inverse.count=1", "method.data2vec2.top_k=2"],
    "data2vec2": ["masks.inverse.count=2", "method.data2vec2.top_k=2"],
    "data2vec2_cifar": ["method.data2vec2.top_k=2"],
    "dinov2": DINOV2,
    "dinov2_documented": DINOV2,
    "ijepa": ["train.backbone.vit_huge_patch14_224.depth=1", "method.ijepa.predictor_depth=2"],
    "gpt2": ["train.backbone.gpt.depth=1", f"{TOKENS}.length=64"],
    "t5_base": ["train.backbone.t5.depth=1", f"{TOKENS}.length=64"],
    "electra_small": ["train.backbone.bert.depth=1", f"{TOKENS}.length=64"],
    "electra_base": ["train.backbone.bert.depth=1", f"{TOKENS}.length=64"],
    "simcse": ["train.backbone.bert.depth=1"],
    "cvrl": NARROW,
    "rho_moco": NARROW,
    "rho_moco_timesformer": ["train.backbone.timesformer.depth=1"],
    "vjepa": [*SMALL_CLIPS, "train.backbone.vit_large.depth=1", "method.ijepa.predictor_depth=2"],
    "vicreg": ["method.vicreg.projector=[512, 512, 512]"],
}


def recipe_of(name, *more, batch_size=2):
    overrides = [f"stream.batch_size={batch_size}", *shallow(name), *SMALLER.get(name, ()), *more]
    return load_recipe(find_recipe(name), overrides=overrides + untrained(name))


def loaded(recipe, shards):
    return sslpipe.load(recipe, shards=shards, device="cpu", rank=0, world_size=1)


def checked_batch(pipe):
    batch = pipe.make_batch(pipe.load_share(0), 0)
    honours(batch, pipe.spec, pipe.recipe.views)
    return batch


def untrained(name):
    """Bytes for a vocabulary that the recipe's reader trains on documents of his own."""
    (op,) = load_recipe(find_recipe(name)).views["tokens"].ops if name in TEXT else (None,)
    known = op is None or op.settings["vocabulary"] in VOCABULARIES
    rows = load_recipe(find_recipe(name)).stream.rows
    uncounted = rows is not None and rows.packing in SENTENCE_PACKERS  # its sentences, too
    packing = ["stream.rows.packing=best_fit"] if uncounted else []
    return [] if known else [f"{TOKENS}.vocabulary=bytes_t5", *packing]


def shallow(name):
    """The same ViT with two blocks: all sizes and names of settings stay, 10 equal blocks less."""
    recipe = load_recipe(find_recipe(name))
    train, tower = recipe.train, []
    if name in PAIRS:
        tower = [f"method.{recipe.method.name}.text.depth=2"]
    if train is None or not train.backbone.name.startswith("vit"):
        return tower
    return [f"train.backbone.{train.backbone.name}.depth=2", *tower]


def small_views(name):
    """Overrides of crops for a step; what they change of a method is how long it takes."""
    recipe = load_recipe(find_recipe(name))
    if not recipe.train.backbone.name.startswith("resnet"):
        return SMALL_VIEWS.get(name, [])
    return [
        f"views.{group}.ops.{at}.RandomResizedCrop.size={SMALL_CROPS[op.settings['size'][0]]}"
        for group, view in recipe.views.items()
        for at, op in enumerate(view.ops)
        if op.name == "RandomResizedCrop" and op.settings["size"][0] in SMALL_CROPS
    ]


def test_the_issue_s_recipes_are_all_there():
    papers = {
        *{"simclr", "moco_v1", "moco_v2", "moco_v3", "byol", "simsiam", "barlow_twins", "vicreg"},
        *{"swav", "deepcluster_v2", "nnclr", "lejepa", "dino", "msn", "ibot", "dinov2"},
        *{"mae", "simmim", "beit", "data2vec2", "ijepa", "autoencoder", "denoising_autoencoder"},
        *{"rotation", "jigsaw", "relative_patch", "colorization", "inpainting"},
    }
    assert {*papers, *(f"{name}_cifar" for name in papers), "demo"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_heads_name_a_paper_and_a_command_and_files_stay_short(name):
    text = find_recipe(name).read_text()
    head = text[: text.index("modality:")]
    assert re.search(r"arXiv:\d{4}\.\d{5}", head)
    verb = "train" if name in TRAINED else "show"
    assert re.search(rf"sslpipe {verb} (pipelines/)?{name}(\.yaml)? --shards", head)
    assert ("Views only" in head) == (name not in TRAINED)
    assert text.count("\n") <= 60


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TRAINED)))
def test_recipes_of_views_make_a_batch_and_name_no_trainer(name, sample):
    recipe = recipe_of(name)
    assert recipe.method is None
    assert recipe.train is None
    with loaded(recipe, sample) as pipe:
        checked_batch(pipe)


@pytest.fixture
def shards(request, name, tmp_path, monkeypatch):
    """What a recipe is for: pictures, documents, recordings, videos, pictures with captions."""
    if name in VIDEO:
        return request.getfixturevalue("videos")
    if name in AUDIO:
        found = request.getfixturevalue("recordings")
        for target in load_recipe(find_recipe(name)).targets.values():
            if target.task.name == "frame_labels":
                monkeypatch.chdir(tmp_path)  # where recipes name it
                label_frames(name, found, tmp_path / target.task.settings["file"])
        return found
    if name not in PAIRS:
        return request.getfixturevalue("texts" if name in TEXT else "sample")
    import tokenizers

    words = ["<pad>", "<s>", "</s>", "<mask>", "<unk>", "the", "text", "of"]
    model = tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.save(str(tmp_path / "vocab.json"))
    monkeypatch.chdir(tmp_path)  # where recipes name it
    return request.getfixturevalue("captioned")


def label_frames(name, shards, out):
    """Cluster a few cepstra, as the head of a recipe says how."""
    head = find_recipe(name).read_text().replace("\n#", "\n")
    (words,) = re.findall(r"sslpipe (frame-labels .*--out .*)", head)
    command, _, *options = words.split()
    out.parent.mkdir(parents=True)
    run = CliRunner().invoke(app, [command, str(shards), *options, "--clusters", "5"])
    assert run.exit_code == 0, run.output
    assert out.exists()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Four recordings of half a second to a second."""
    folder = tmp_path_factory.mktemp("recordings")
    made = {f"{n}.flac": encoded(chirp(0.5 + n / 8, seed=n)) for n in range(4)}
    return packed(folder / "files", folder / "shards", made)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos of 40 frames."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(4):
        (folder / f"{number}.mp4").write_bytes(film(40))
    out = tmp_path_factory.mktemp("shards") / "films"
    pack(folder, out, PackSettings(codec=VideoCodec()))
    return out


@pytest.mark.parametrize("name", TRAINED)
def test_one_batch_one_step_one_backward(name, shards):
    torch.manual_seed(0)  # the caller's; nothing may depend on it
    small = small_views(name)
    if small:
        with loaded(recipe_of(name), shards) as pipe:
            checked_batch(pipe)
    with loaded(recipe_of(name, *small), shards) as pipe:
        batch = checked_batch(pipe)
        run = prepare_run(pipe, initial_method(pipe.recipe, pipe.spec), pipe.recipe.train)
        if name.startswith("deepcluster"):  # its first epoch only fills the memory
            assert run.method(batch).loss == 0
            batch = replace(batch, epoch=1)
        output = run.method(batch)
        output.loss.backward()
        trained = [p for p in run.method.parameters() if p.requires_grad]
        assert torch.isfinite(output.loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
        before = [p.detach().clone() for p in trained]
        run.optimizer.step()
        run.method.after_step(1.0)
        assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
        assert all(torch.isfinite(p).all() for p in trained)


# recipe -> parameters in millions, of the paper or the official code, with 30,522 words and so on
PAPERS = {"gpt2": 124, "t5_base": 223, "electra_small": 14, "electra_base": 110, "simcse": 110}
WORDS = {"gpt2": 50257, "t5_base": 32128}


@pytest.mark.parametrize("name", PAPERS)
def test_text_recipes_of_papers_are_as_large_as_theirs(name, texts):
    """Built without memory, at the paper's vocabulary; all settings are checked, too."""
    overrides = ["stream.batch_size=2", *untrained(name)]
    recipe = load_recipe(find_recipe(name), overrides=overrides)
    with loaded(recipe, texts) as pipe:
        check_training(recipe, pipe.spec)
        view = replace(pipe.spec.views["tokens"], vocabulary=WORDS.get(name, 30522))
    with torch.device("meta"):
        encoder = build_encoder(recipe.train.backbone, view)
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert count == pytest.approx(PAPERS[name], rel=0.05)


def honours(batch, spec, drawn):
    assert set(batch.views) == set(spec.views)
    for group, view in spec.views.items():
        views = batch.views[group]
        assert views.shape == (view.count, spec.size, *view.shape)
        assert views.dtype == view.dtype
        if view.vocabulary is not None:
            assert views.min() >= 0
            assert views.max() < view.vocabulary
            planes = 3 if {"nsp", "sop"} & {*spec.targets} else 2
            assert batch.segments[group].shape == (planes, spec.size, *view.shape)
            assert (batch.lengths[group] > 0).all()
            continue
        assert views.dtype == torch.float32
        assert torch.isfinite(views).all()
        assert batch.params[group].shape == (drawn[group].count, spec.size, len(view.columns))
    for name, mask in spec.masks.items():
        assert batch.masks[name].shape == (mask.count, spec.size, mask.patches)
        counts = batch.masks[name].sum(-1)
        assert counts.tolist() == batch.hidden[name].tolist()
        assert mask.hidden is None or (counts == mask.hidden).all()
    for name, target in spec.targets.items():
        assert batch.targets[name].shape == (target.count, spec.size, *target.shape)
        if target.classes is None:
            assert batch.targets[name].dtype == torch.float32
            continue
        asked = batch.targets[name]
        if spec.views[target.view].vocabulary is not None:
            counts = (asked != IGNORED).sum(-1).numpy()
            if "sop" in spec.targets or "nsp" in spec.targets:  # how long rows are, is not known
                assert not target.shape or (batch.hidden[name] >= counts).all()
            else:
                assert batch.hidden[name].tolist() == counts.tolist()
        asked = asked[asked != IGNORED]
        assert not asked.numel() or asked.min() >= 0
        assert not asked.numel() or asked.max() < target.classes


def test_rotation_turns_one_augmented_image_by_its_target(sample):
    with loaded(recipe_of("rotation_cifar", batch_size=4), sample) as pipe:
        batch = pipe.make_batch(pipe.load_share(0), 0)
    views, turns = batch.views["global"], batch.targets["rotation"]
    assert turns.tolist() == [[v] * 4 for v in range(4)]
    for v in range(4):
        assert torch.equal(torch.rot90(views[v], -v, (-2, -1)), views[0])


def test_masks_differ_between_samples_and_epochs(sample):
    with sslpipe.load(recipe_of("mae", batch_size=8), shards=sample, device="cpu") as pipe:
        first, later = (pipe.make_batch(pipe.load_share(s), s).masks["random"][0] for s in (0, 20))
    assert len({tuple(row.tolist()) for row in torch.cat([first, later])}) == 16
