"""Audio: recordings become waveforms and spectrograms.

at rest   codec, recordings           decode   clips: the planned crops of a sample, in workers
decide    decider: policy, ops, tasks  make    maker: int16 -> waves -> spectrograms
look      sheet

A group begins with a crop, whose samples alone are decoded; a group with an op that makes
spectrograms has views of axes "CFT", any other one waveforms, "T":

```yaml
modality: audio
views:
  wave: {ops: [Crop: {samples: 16000, rate: 16000}]}
masks:  # frames of wav2vec 2.0's encoder: one every 320 samples, of 400 samples each
  spans: {view: wave, patch_size: 320, receptive_field: 400, sampler: spans}
targets:
  distractors: {view: wave, task: {distractors: {count: 100, mask: spans}}}
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import Modality, Partners
from .codec import AudioCodec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL.Image import Image

    from ...batch import Batch, BatchSpec
    from ...recipe import Recipe
    from ...recipe.schema import ViewSection
    from ...stream.by_length import LengthBuckets
    from ...stream.source import Column
    from .. import Costs
    from .clips import WaveDecode
    from .decider import AudioDecider
    from .maker import AudioMaker


class AudioModality(Modality):
    """What `modality: audio` is: WAV, FLAC, Ogg, Opus and MP3."""

    codec = AudioCodec()
    unit = "recording"

    def advice(self, recipe: Recipe, what: Costs, *, cuda: bool) -> str:
        """What to change in files or recipe where decoding, making or memory binds."""
        return {
            "decoding": "store recordings as WAV at the rate of the crops: neither decoding nor "
            "resampling is left",
            "making": "use shorter crops or fewer views",
            "memory": "shorter crops or fewer views",
        }[what]

    def decider(self, recipe: Recipe, groups: Sequence[str]) -> AudioDecider:
        """Decides the crops, ops, masks and distractors of view groups."""
        from .decider import AudioDecider

        return AudioDecider(recipe, groups)

    def decoder(self, recipe: Recipe) -> WaveDecode:
        """The crops of all views, as int16."""
        from .clips import WaveDecode
        from .policy import crop_of

        views = {name: recipe.views[name] for name in audio_groups(recipe)}
        return WaveDecode([(crop_of(name, view.ops), view.count) for name, view in views.items()])

    def partners(self, recipe: Recipe, decider: AudioDecider) -> Partners | None:
        """One for each view into which an op mixes it."""
        count = decider.partners
        return Partners(count, decider.partner_instructions) if count else None

    def buckets(self, recipe: Recipe, decider: AudioDecider) -> LengthBuckets | None:
        """Lengths of waveforms, from the longest that a crop may be down."""
        return decider.buckets(recipe) if recipe.stream.bucket else None

    def files(self, recipe: Recipe, decider: AudioDecider) -> str:
        """What resamples, as other versions make other samples; and files of labels."""
        from .clips import resampler

        read = (task.files for task, _ in decider.tasks.values())
        return " ".join([f"resampling {resampler()}", *filter(None, read)])

    def maker(
        self,
        recipe: Recipe,
        decider: AudioDecider,
        *,
        device: torch.device,
        threads: ThreadPoolExecutor | None,
    ) -> AudioMaker:
        """Does the ops in torch, on all samples at once."""
        from .maker import AudioMaker

        return AudioMaker(decider)

    def sheet(
        self,
        batch: Batch,
        spec: BatchSpec,
        decider: AudioDecider,
        stored: Column,
        *,
        rows: int = 8,
    ) -> Image:
        """A band for each sample: waveforms and spectrograms, masks and lengths drawn in."""
        from .sheet import sheet

        return sheet(batch, decider, rows=rows)

    def beside(
        self,
        batch: Batch,
        spec: BatchSpec,
        decider: AudioDecider,
        stored: Column,
        *,
        rows: int = 8,
    ) -> dict[str, bytes]:
        """A WAV file for each group."""
        from .sheet import heard

        return heard(batch, decider, stored.arrays, rows=rows)

    def thumbnails(self, items: Sequence[tuple[bytes, Sequence[str]]]) -> Image:
        """Draw recordings, each with its lines of text, as small waveforms and spectrograms."""
        from .sheet import thumbnails

        return thumbnails(items)

    def evaluation_views(self, recipe: Recipe) -> dict[str, ViewSection]:
        """One group of central crops, in which nothing is random."""
        from .decider import evaluation_views

        return evaluation_views(recipe, audio_groups(recipe))


def audio_groups(recipe: Recipe) -> list[str]:
    """The view groups that are of this modality."""
    mine = AudioCodec.modality
    return [
        name for name, view in recipe.views.items() if (view.modality or recipe.modality) == mine
    ]


MODALITY = AudioModality()
