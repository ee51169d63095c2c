"""What `bench` decides is what the pipeline decides, as many steps in one go."""

import numpy as np

from sslpipe.deciding import as_drawn, deciding
from tests.streaming import load

RECIPE = "stream.batch_size=16"


def test_the_tables_are_those_of_the_batches(packed):
    with load(packed, "run.workers=0", RECIPE) as pipe:
        decide = deciding(pipe, pipe.load_share(0))
        for step in range(5):
            batch = pipe.make_batch(pipe.load_share(step), step)
            tables = decide(step)
            assert len(batch.params) == sum(len(table.params) for table in tables) > 0
            for table in tables:
                for name, params in table.params.items():
                    np.testing.assert_array_equal(params, batch.params[name].numpy())


def test_it_decides_many_steps_in_one_go_as_the_pipeline_does(packed, monkeypatch):
    with load(packed, "run.workers=0", RECIPE) as pipe:
        decide, planned, asked = deciding(pipe, pipe.load_share(0)), pipe.source.planned, []
        monkeypatch.setattr(
            pipe.source, "planned", lambda steps: asked.append(len(steps)) or planned(steps)
        )
        for step in range(30):
            decide(step)
        assert asked == [2, 4, 8, 16]


def test_a_share_of_another_length_keeps_its_own_samples(packed):
    """A short last batch is drawn ahead for fewer samples than the share at hand has."""
    with load(packed, "run.workers=0", RECIPE) as pipe:
        share = pipe.load_share(0)
        (drawn,) = share.drawn
        assert as_drawn(share, (drawn.at(slice(9)),)).uids is share.uids
        assert as_drawn(share, (None,)).drawn == ()
