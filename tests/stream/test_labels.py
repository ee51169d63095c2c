"""Labels beside the shards, seen in batches."""

import pytest

from sslpipe.errors import RecipeError, ShardError, StateError
from sslpipe.evaluate.classes import class_names
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.rng import sample_id
from sslpipe.shards import PackSettings, pack, read_manifest
from sslpipe.shards.labels_file import LabelRow, label_table, write_labels

from ..conftest import write_images
from ..streaming import load, steps, trace


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """24 images without a class, in a few shards."""
    folder = tmp_path_factory.mktemp("plain")
    write_images(folder / "images", 24, classes=1)
    pack(
        folder / "images" / "class0",
        folder / "shards",
        PackSettings(codec=ImageCodec(), shard_bytes=20_000),
    )
    assert len(read_manifest(folder / "shards").shards) > 2
    return folder / "shards"


def write(path, labels):
    rows = [LabelRow(sample_id(key), key, name, 0.9) for key, name in labels.items()]
    write_labels(path, label_table(str(path), rows))
    return f"stream.labels={path}"


def seen(batches):
    return {
        key: label
        for batch in batches
        for key, label in zip(batch.keys, batch.labels.tolist(), strict=True)
    }


LABELS = {"003": "wren", "011": "owl", "020": "wren"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_labels_on_any_number_of_ranks(unlabelled, tmp_path, workers):
    given = write(tmp_path / "l.csv", LABELS)
    expected = {f"{i:03d}": -1 for i in range(24)} | {"003": 1, "011": 0, "020": 1}
    for world in (1, 3):
        found = {}
        for rank in range(world):
            words = (given, "stream.batch_size=12", f"run.workers={workers}")
            with load(unlabelled, *words, rank=rank, world_size=world) as pipe:
                found |= seen(steps(pipe, 2))
                assert class_names(pipe) == ("owl", "wren")
        assert found == expected


def test_nothing_else_of_the_batches_changes(unlabelled, tmp_path):
    given = write(tmp_path / "l.csv", LABELS)
    with load(unlabelled) as plain, load(unlabelled, given) as labelled:
        batches, others = steps(plain, 4), steps(labelled, 4)
        assert trace(batches) == trace(others)
        assert plain.recipe.fingerprint == labelled.recipe.fingerprint
        assert set(seen(batches).values()) == {-1}


def test_labels_go_before_those_of_the_shards(packed, tmp_path):
    given = write(tmp_path / "l.csv", {"class0/000": "class2"})
    with load(packed) as plain, load(packed, given) as labelled:
        before, after = seen(steps(plain, 6)), seen(steps(labelled, 6))
        assert class_names(labelled) == class_names(plain)
    assert before["class0/000"] == 0
    assert after == before | {"class0/000": 2}


def test_a_run_goes_on_with_the_same_labels_only(unlabelled, tmp_path):
    given = write(tmp_path / "l.csv", LABELS)
    with load(unlabelled, given) as pipe:
        steps(pipe, 1)
        state = pipe.state_dict()
    again = write(tmp_path / "moved.csv", LABELS)
    with load(unlabelled, again) as pipe:
        pipe.load_state_dict(state)  # the place of the file does not count
    for other in ((), (write(tmp_path / "l.csv", LABELS | {"003": "owl"}),)):
        with load(unlabelled, *other) as pipe, pytest.raises(StateError, match="its shards"):
            pipe.load_state_dict(state)


def test_what_the_shards_do_not_have_is_one_line(unlabelled, packed, tmp_path):
    unknown = write(tmp_path / "l.csv", {"003": "owl", "999": "owl"})
    with pytest.raises(ShardError, match=r"l\.csv: 999 is no sample of .* \(1 of 2 rows\)"):
        load(unlabelled, unknown)
    wrong = write(tmp_path / "l.csv", {"class0/000": "clas2"})
    with pytest.raises(ShardError, match=r"'clas2', which is no class .* did you mean 'class"):
        load(packed, wrong)
    with pytest.raises(ShardError, match=r"none\.csv: cannot be read"):
        load(packed, f"stream.labels={tmp_path / 'none.csv'}")


def test_only_one_packed_set_takes_labels(unlabelled, tmp_path):
    given = write(tmp_path / "l.csv", LABELS)
    for shards in ({"a": unlabelled, "b": unlabelled}, iter([])):
        with pytest.raises(RecipeError, match="labels one packed set by its uids"):
            load(shards, given)
