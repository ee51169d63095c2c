"""An encoder of waveforms as a folder that `transformers` loads: config, weights, extractor, card.

The encoder's names are those of `transformers` already. The folder is loaded, and its states are
compared, before it has a name.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoders.wav2vec2 import PlaceConv, Wav2Vec2Encoder, WaveConv, WaveLayer
from ..modalities.audio.policy import crop_of
from ..recipe.schema import ViewSection
from .checks import check_alike, loaded, transformers_here
from .model_card import ExportSettings, head, origins, results
from .trained import Trained
from .writers import metadata, write_json, write_tensors

ARCHITECTURES = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model"}
EXAMPLES = 2
USE = """```python
from transformers import AutoFeatureExtractor, AutoModel

extract, model = (k.from_pretrained("{folder}") for k in (AutoFeatureExtractor, AutoModel))
batch = extract(waveforms, sampling_rate={rate}, padding=True, return_tensors="pt")
states = model.eval()(**batch).last_hidden_state  # (B, N, {dim})
```"""


def write_waves(
    part: Path, name: str, trained: Trained, formats: Sequence[str], settings: ExportSettings
) -> tuple[str, ...]:
    """Write all files of the model `name` to `part`; give the formats that nothing could check.

    Raises:
        SslpipeError: transformers gives other states than the encoder.
    """
    (part / "recipe.yaml").write_text(trained.recipe_yaml, encoding="utf-8")
    extractor = extractor_of(trained)
    write_json(part / "preprocessing.json", extractor)
    write_tensors(part / "model.safetensors", trained.encoder.state_dict(), metadata(trained))
    unchecked = False
    if "hf" in formats:
        write_json(part / "config.json", config_of_waves(trained))
        write_json(part / "preprocessor_config.json", extractor)
        unchecked = not check_states(part, trained)
    text = "\n\n".join(card_parts(trained, name, formats, settings)) + "\n"
    (part / "README.md").write_text(text, encoding="utf-8")
    return ("hf",) if unchecked else ()


def kind_of_waves(trained: Trained) -> str:
    """The `model_type`: networks are alike, and what was learned is told by the method."""
    method = trained.recipe.method
    return "hubert" if method is not None and method.name == "hubert" else "wav2vec2"


def config_of_waves(trained: Trained) -> Mapping[str, Any]:
    """What transformers makes the model by."""
    encoder, kind = cast(Wav2Vec2Encoder, trained.encoder), kind_of_waves(trained)
    convs = cast(nn.ModuleList, encoder.feature_extractor["conv_layers"])
    first = cast(WaveConv, convs[0])
    layer = cast(WaveLayer, cast(nn.ModuleList, encoder.encoder["layers"])[0])
    place = cast(PlaceConv, encoder.encoder["pos_conv_embed"]).conv
    rates = ("hidden_dropout", "attention_dropout", "feat_proj_dropout")
    return {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "hidden_size": encoder.dim,
        "num_hidden_layers": len(cast(nn.ModuleList, encoder.encoder["layers"])),
        "num_attention_heads": layer.heads,
        "intermediate_size": layer.feed_forward["intermediate_dense"].out_features,
        "conv_dim": [encoder.conv_dim] * len(convs),
        "conv_kernel": list(encoder.kernels),
        "conv_stride": list(encoder.strides),
        "conv_bias": first.conv.bias is not None,
        "feat_extract_norm": "layer" if isinstance(first.layer_norm, nn.LayerNorm) else "group",
        "num_conv_pos_embeddings": place.kernel_size[0],
        "num_conv_pos_embedding_groups": place.groups,
        "do_stable_layer_norm": False,
        **dict.fromkeys(rates, encoder.drop.p),
        "activation_dropout": 0.0,
        "layerdrop": encoder.layer_drop,
        "dtype": "float32",
    }


def view_of_waves(trained: Trained) -> ViewSection:
    """The group of waveforms that the encoder was trained on."""
    return trained.recipe.views[trained.view["group"]]


def extractor_of(trained: Trained) -> Mapping[str, Any]:
    """How a waveform becomes what the encoder was shown, as transformers says it."""
    view = view_of_waves(trained)
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": crop_of(trained.view["group"], view.ops).rate,
        "padding_value": 0.0,
        "do_normalize": any(op.name == "Standardize" for op in view.ops),
        "return_attention_mask": True,
    }


@torch.no_grad()
def check_states(folder: Path, trained: Trained) -> bool:
    """Load a folder by `AutoModel.from_pretrained`, if transformers is there; tell whether it is.

    Raises:
        SslpipeError: the states differ.
    """
    transformers = transformers_here()
    if transformers is None:
        return False
    encoder, waves_BT = cast(Wav2Vec2Encoder, trained.encoder), trained.examples(EXAMPLES)
    real_B = torch.tensor([waves_BT.shape[1], (waves_BT.shape[1] + encoder.field) // 2])
    normed_BNC = encoder.normed(encoder.features(waves_BT))
    real_BN = encoder.real_frames(real_B, normed_BNC.shape[1])
    ours_BND = encoder.context(normed_BNC, real_BN=real_BN)
    seen_BT = torch.arange(waves_BT.shape[1]) < real_B[:, None]
    model = loaded(transformers, folder)
    theirs_BND: Tensor = model(waves_BT, attention_mask=seen_BT.long()).last_hidden_state
    what = f"transformers {transformers.__version__}"
    check_alike(theirs_BND[real_BN], ours_BND[real_BN], what, trained.path)
    return True


def card_parts(
    trained: Trained, name: str, formats: Sequence[str], settings: ExportSettings
) -> Iterator[str]:
    """The model card, part by part."""
    recipe, loads = trained.recipe, "hf" in formats
    assert recipe.method is not None
    assert recipe.train is not None
    sounds = recipe.stream.batch_size * recipe.train.accumulate
    library = "transformers" if loads else None
    yield head(
        name, settings.license_name, settings.measures, task="feature-extraction", library=library
    )
    yield f"# {name}"
    yield (
        f"A {recipe.train.backbone.name} pretrained without labels by sslpipe: method "
        f"`{recipe.method.name}`, after {trained.step:,} steps of {sounds} waveforms of "
        f"{trained.shape[0]:,} samples.\n\n{origins(trained)}"
    )
    if loads:
        rate = extractor_of(trained)["sampling_rate"]
        yield "## Use"
        yield USE.format(folder=name, rate=rate, dim=trained.encoder.dim)
    yield f"`sslpipe train RECIPE --shards SHARDS --from {name}` starts from these weights."
    yield from results(settings.measures)
    yield "## Recipe"
    yield "The same as `recipe.yaml`; `sslpipe train recipe.yaml --shards SHARDS` trains it again."
    yield f"```yaml\n{trained.recipe_yaml.rstrip()}\n```"
