"""Labels and names as pandas, NumPy, spreadsheets and Unicode write them."""

import pytest

from sslpipe.errors import ShardError
from sslpipe.shards.make.listing import list_inputs

from ...conftest import write_images


@pytest.fixture
def listed(tmp_path):
    """What a table of six photos with these labels gives; `header` and encoding may differ."""
    write_images(tmp_path / "p", 6)
    paths = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "p").rglob("*.jpg"))

    def listed(labels, header="path,label", encoding="utf-8"):
        rows = [f"{path},{label}" for path, label in zip(paths, labels, strict=True)]
        (tmp_path / "t.csv").write_text("\n".join([header, *rows]), encoding=encoding)
        return list_inputs([tmp_path / "t.csv"], out=tmp_path / "out", extensions={"jpg"})

    return listed


@pytest.mark.parametrize(
    "labels",
    [
        ["2.0", "nan", "10.0", "", "NaN", "4.0"],
        ["2", "<NA>", "10", "-1", "-1.0", "4"],
        ["2.000e+00", "nan", "1.000e+01", "nan", " nan ", "4.000e+00"],
        ["+2", "", "1e1", "", "", "40e-1"],
    ],
    ids=["pandas", "nullable", "savetxt", "signs"],
)
def test_missing_numbers_leave_the_others_numbers(listed, labels):
    listing = listed(labels)
    assert [source.label for source in listing.sources] == [2, -1, 10, -1, -1, 4]
    assert listing.labels == "numbers, kept as they are"


def test_parts_and_padded_numbers_are_names(listed):
    listing = listed(["007", "2.5", "1e-1", "+07", "1e", "."])
    assert listing.classes == ("+07", ".", "007", "1e", "1e-1", "2.5")


def test_a_column_that_stands_twice_is_refused(listed):
    with pytest.raises(ShardError, match="has 2 columns 'label'; rename all but one"):
        listed([f"{n},9" for n in range(6)], header="path,label,label")
    assert len(listed([f"{n},9,9" for n in range(6)], header="path,label,x,x").sources) == 6


def test_a_table_in_utf_16_is_told_to_be_one(listed):
    with pytest.raises(ShardError, match=r"is no UTF-8 \(UTF-16, perhaps\); save it as UTF-8"):
        listed(range(6), encoding="utf-16")


@pytest.mark.parametrize(
    ("names", "told"),
    [(("caf\u00e9", "cafe\u0301"), r"'cafe\u0301' and 'caf\xe9' are two classes"),
     (("Cat", "cat"), "'Cat' and 'cat' are two classes"), (("cat", "dog"), None)],
)  # fmt: skip
def test_classes_that_read_alike_are_told(listed, names, told):
    listing = listed([*names, *names, *names])
    assert len(listing.classes) == 2
    assert told in listing.labels if told else "alike" not in listing.labels
