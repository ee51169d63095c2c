"""The modality of `crashing.py`: series of numbers, whose decoder a test chooses."""

from tests.modalities.toy import SeriesModality

from .crashing import TroubledDecode

NAME = "tests.stream.troubled:TroubledModality"
RECIPE = f"""\
modality: {NAME}
stream: {{batch_size: 12, seed: 0, order: global, max_bad_fraction: 1.0}}
views:
  global: {{count: 2, ops: [Window: {{length: 32}}]}}
run: {{threads: 2, prefetch: 0, workers: 2}}
"""


class TroubledModality(SeriesModality):
    """What the recipe names; the decoder is the class's."""

    chosen = TroubledDecode()

    def decoder(self, recipe):
        return self.chosen
