"""CLIP and SigLIP against slow loops, and the errors that are easily made with them."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sslpipe.batch import ViewSpec
from sslpipe.encoders.patches import visible_first
from sslpipe.encoders.text_tower import TextTower
from sslpipe.errors import ContractError, RecipeError
from sslpipe.methods import follow
from sslpipe.methods.clip import clip_loss
from sslpipe.methods.parts import collectives, two_towers
from sslpipe.methods.siglip import siglip_loss
from sslpipe.process import Ranks

from .every_method import build, make_batch, make_spec

B, D = 7, 5


@pytest.fixture
def embeddings(rand):
    return rand(B, D), rand(B, D)


def made(name, size=4, *, masked=True, **settings):
    torch.manual_seed(0)
    spec = make_spec(size)
    if not masked:
        spec = replace(spec, masks={k: v for k, v in spec.masks.items() if k != "random"})
    return build(name, spec, **settings), make_batch(size)


# --- losses


def test_clip_is_a_loop_over_images_and_captions(embeddings):
    image, text = embeddings
    total = 0.0
    for rows, others in ((image, text), (text, image)):
        for i in range(B):
            logits = torch.stack(
                [20 * F.cosine_similarity(rows[i], others[j], dim=0) for j in range(B)]
            )
            total = total - logits.log_softmax(0)[i] / (2 * B)
    torch.testing.assert_close(clip_loss(image, text, scale=20.0), total)


def test_siglip_is_a_loop_over_all_pairs(embeddings):
    image, text = embeddings
    total = 0.0
    for i in range(B):
        for j in range(B):
            logit = 10 * F.cosine_similarity(image[i], text[j], dim=0) - 3
            total = total - F.logsigmoid(logit if i == j else -logit) / B
    torch.testing.assert_close(siglip_loss(image, text, scale=10.0, bias=-3.0), total)


def test_what_embeddings_that_tell_nothing_cost():
    """ln B; 10 for the pair and 4.5e-5 for each other caption: not divided by B squared."""
    same = torch.ones(B, D)
    assert clip_loss(same, same, scale=1 / 0.07).item() == pytest.approx(math.log(B))
    image, text = torch.eye(2 * B)[:B], torch.eye(2 * B)[B:]
    expected = math.log1p(math.exp(10)) + (B - 1) * math.log1p(math.exp(-10))
    assert siglip_loss(image, text, scale=10.0, bias=-10.0).item() == pytest.approx(expected)
    assert expected == pytest.approx(10 + 4.5e-5 * B, abs=1e-4)


def test_siglip_s_chance_is_the_best_answer_that_knows_no_picture():
    method, _ = made("siglip", 6)
    image, text = torch.eye(12)[:6], torch.eye(12)[6:]
    losses = [siglip_loss(image, text, scale=1.0, bias=b / 100).item() for b in range(-300, 0)]
    assert min(losses) == pytest.approx(method.chance_loss, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_chunks_change_neither_loss_nor_gradient(embeddings, loss, chunk):
    found = []
    for rows in (None, chunk):
        given = [z.clone().requires_grad_() for z in embeddings]
        scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        more = {} if loss is clip_loss else {"bias": torch.tensor(-2.0, requires_grad=True)}
        value = loss(*given, scale=scale, chunk=rows, **more)
        inputs = [*given, scale, *more.values()]
        found.append([value, *torch.autograd.grad(value, inputs)])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_chunks_bound_what_backward_keeps(loss):
    """Of 64 x 64 logits never more than 8 rows, where at once all are kept."""

    def largest(chunk):
        sizes = []
        given = [torch.randn(64, 4, requires_grad=True) for _ in range(2)]
        more = {} if loss is clip_loss else {"bias": -1.0}
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        )
        with keep:
            loss(*given, scale=torch.tensor(3.0, requires_grad=True), chunk=chunk, **more)
        return max(sizes)

    assert largest(None) == 64 * 64
    assert largest(8) <= 64 * 8


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_lengths_of_embeddings_do_not_count(embeddings, loss):
    """Naive error: logits of embeddings that are not normalised."""
    image, text = embeddings
    more = {} if loss is clip_loss else {"bias": -2.0}
    once, longer = (loss(k * image, k * k * text, scale=8.0, **more) for k in (1, 3))
    torch.testing.assert_close(once, longer)
    raw = F.cross_entropy(8 * image @ text.T, torch.arange(B))
    assert abs(raw - once) > 0.1


def test_a_rank_s_labels_begin_where_its_pairs_do(monkeypatch):
    """Naive error: labels from 0 on every rank."""
    monkeypatch.setattr(collectives, "group_ranks", lambda: Ranks(2, 4))
    assert collectives.own_places(torch.zeros(3, 2)).tolist() == [6, 7, 8]


def test_other_shapes_are_refused(rand):
    for loss, more in ((clip_loss, {}), (siglip_loss, {"bias": 0.0})):
        with pytest.raises(ContractError, match=r"_loss: text_BD has shape \(4, 5\), so B = 4"):
            loss(rand(3, 5), rand(4, 5), scale=1.0, **more)


# --- methods


@pytest.mark.parametrize(("pushed", "left"), [(99.0, math.log(100)), (-99.0, 0.0)])
def test_clip_s_scale_is_clamped_after_the_step(pushed, left):
    """Naive error: clamped before the step, which then takes it out of the range."""
    method, batch = made("clip")
    optimizer = torch.optim.SGD([method.log_scale], lr=1.0)
    follow(optimizer, method, total_steps=2)
    method.log_scale.grad = torch.tensor(-pushed)
    optimizer.step()
    assert method.log_scale.item() == pytest.approx(left)
    assert method(batch).metrics["scale"].item() == pytest.approx(math.exp(left))


def test_they_start_where_the_papers_do():
    clip, _ = made("clip")
    assert clip.log_scale.exp().item() == pytest.approx(1 / 0.07)
    siglip, _ = made("siglip", bias=-10.0)
    assert (siglip.log_scale.exp().item(), siglip.bias.item()) == pytest.approx((10.0, -10.0))
    assert clip.text.causal
    assert not siglip.text.causal
    assert not [name for name, _ in clip.named_parameters() if name.startswith("project")][2:]
    assert not [n for n, _ in clip.named_parameters() if "project" in n and n.endswith("bias")]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_step_compares_what_the_towers_give(name):
    method, batch = made(name, masked=False)
    images, tokens = batch.views["global"][0], batch.views["tokens"][0]
    image = method.project_image(method.encoder(images))
    text = method.project_text(method.text.at_end(tokens, batch.segments["tokens"]))
    more = {} if name == "clip" else {"bias": method.bias}
    loss = {"clip": clip_loss, "siglip": siglip_loss}[name]
    expected = loss(image, text, scale=method.log_scale.exp(), **more)
    output = method(batch)
    torch.testing.assert_close(output.loss, expected)
    near = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    right = (near.argmax(1) == torch.arange(4)).float().mean()
    torch.testing.assert_close(output.metrics["top1"], right)


def test_flip_sees_visible_patches_alone():
    method, batch = made("clip")
    hidden = batch.masks["random"][0]
    image, _ = method.embedded(batch)
    order = visible_first(hidden)[:, :4]
    tokens = method.encoder.tokens(batch.views["global"][0], order)
    torch.testing.assert_close(image, method.project_image(tokens[:, 0]))
    pixels = hidden.view(4, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    spoilt = torch.where(pixels, 9.0, batch.views["global"])
    moved, _ = method.embedded(replace(batch, views=batch.views | {"global": spoilt}))
    torch.testing.assert_close(moved, image)
    whole = method.embedded_images(batch.views["global"][0])
    assert not torch.allclose(whole, image)  # as evaluation sees it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": {"dpeth": 3}}, r"method\.clip\.text: text has no setting 'dpeth'; did you mean"),
        ({"text": {"dim": 10, "heads": 4}}, r"method\.clip\.text: .*dim = 10 is no multiple"),
        ({"temperature": 0.0}, "temperature = 0.0; set what is above 0"),
        ({"chunk": -1}, "chunk = -1; set what is above 0"),
        ({"dim": 0}, "dim = 0; set what is above 0"),
    ],
)
def test_a_wrong_setting_is_a_line_of_the_recipe(settings, message):
    with pytest.raises(RecipeError, match=message):
        made("clip", **settings)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_pictures_without_captions_are_refused(name):
    spec = make_spec(4)
    bare = {key: view for key, view in spec.views.items() if key != "tokens"}
    with pytest.raises(ContractError, match=rf"{name} needs one group of captions .*views\.text"):
        build(name, replace(spec, views=bare))


# --- the text tower

VIEW = ViewSpec("text", 1, "L", (8,), torch.int64, vocabulary=20)
SEGMENTS = torch.tensor([[0] * 5 + [-1] * 3, [0, 1, 2, 3, 4, 0, 0, 0]])[:, None]
TOKENS = torch.tensor([[1, 9, 7, 8, 2, 0, 0, 0]])


@pytest.fixture(params=[True, False], ids=["causal", "both ways"])
def tower(request):
    torch.manual_seed(0)
    return TextTower(VIEW, request.param, dim=16, depth=2, heads=2).double()


def test_padding_reaches_no_caption(tower):
    """Naive error: id 0 is padding, and seen. A shorter row, or other ids there, change nothing."""
    whole = tower.at_end(TOKENS, SEGMENTS)
    other = torch.where(SEGMENTS[0] < 0, 11, TOKENS)
    torch.testing.assert_close(tower.at_end(other, SEGMENTS), whole, rtol=0, atol=1e-12)
    short = tower.at_end(TOKENS[:, :5], SEGMENTS[..., :5])
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-12)


def test_the_last_token_stands_for_the_caption_whatever_its_id(tower):
    """Naive error: the largest id, which is `end` in CLIP's own vocabulary and not in others."""
    states = tower.hidden(TOKENS, SEGMENTS)
    assert torch.equal(tower.at_end(TOKENS, SEGMENTS), states[:, 4])
    assert int(TOKENS.argmax()) == 1
    nothing = SEGMENTS.clone()
    nothing[0] = -1  # of a masked sample
    assert tower.at_end(TOKENS, nothing).isfinite().all()


def test_which_tokens_a_token_sees(tower):
    other = TOKENS.clone()
    other[0, 3] = 12
    moved = (tower.hidden(TOKENS, SEGMENTS) != tower.hidden(other, SEGMENTS)).any(-1)[0].tolist()
    before = not tower.causal
    assert moved == [before, before, before, True, True, False, False, False]


def test_weights_start_as_open_clip_s():
    torch.manual_seed(0)
    view = ViewSpec("text", 1, "L", (64,), torch.int64, vocabulary=900)
    tower = TextTower(view, True, dim=256, depth=3, heads=4)
    block = tower.h[1]
    expected = {
        tower.wte: 0.02, tower.wpe: 0.01, block.attn["c_attn"]: 256**-0.5,
        block.attn["c_proj"]: 256**-0.5 * 6**-0.5, block.mlp["c_fc"]: 512**-0.5,
        block.mlp["c_proj"]: 256**-0.5 * 6**-0.5,
    }  # fmt: skip
    for part, std in expected.items():
        assert part.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(part.weight.mean().item()) < 0.01 * std**0.5
    layer = two_towers.projection(400, 300)
    assert layer.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
