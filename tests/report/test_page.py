import csv
import json
import pathlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import torch

from sslpipe.errors import SslpipeError
from sslpipe.evaluate.results import Measure
from sslpipe.report import ReportSettings, write_report
from sslpipe.report.confusion import confusion
from tests.report.conftest import renamed


class Page(HTMLParser):
    """Rows of table cells, elements by name, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.words, self.scripts = [], [], [], []
        self._cell = self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = ""
        if tag == "script":
            self._script = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self._cell.split()))
            self._cell = None
        if tag == "script":
            self.scripts.append(self._script)
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self._script += data
        elif self._cell is not None:
            self._cell += data
        self.words.append(data)


def page_of(evaluations, out, **settings):
    path = write_report(evaluations, out, ReportSettings(**settings))
    return path.read_text(encoding="utf-8")


def test_the_numbers_are_the_measures(evaluation, tmp_path):
    page = Page(page_of([evaluation], tmp_path / "out"))
    by_name = {row[0]: row for row in page.rows if row}
    heads = [row[1:5] for row in page.rows if row[:1] == ["measure"]]
    assert heads == [["trained", "untrained", "raw pixels", "chance"], heads[0][:3]]
    assert by_name["knn top-1weighted k-NN (k=20)"][1:5] == ["0.812", "0.438", "0.375", "0.333"]
    assert by_name["5-shot600 episodes"][1:5] == [
        "0.750 ± 0.012", "0.375 ± 0.012", "0.312 ± 0.012", "0.333",
    ]  # fmt: skip
    assert by_name["RankMeeffective rank of 45 features"][1:4] == ["81.25", "43.75", "37.5"]
    verdict = " ".join(" ".join(page.words).split())
    assert "Pretraining helped. knn top-1: 0.812 trained, 0.438 untrained" in verdict


@pytest.mark.parametrize(
    ("trained", "interval", "word"),
    [
        (0.9, None, "Pretraining helped."),
        (0.44, 0.02, "No better than untrained."),
        (0.2, 0.02, "Worse than untrained."),
    ],
)
def test_the_verdict(evaluation, tmp_path, trained, interval, word):
    measure = Measure("knn top-1", trained, "k-NN", interval, 0.1)
    changed = replace(evaluation, measures={**evaluation.measures, "trained": (measure,)})
    assert word in page_of([changed], tmp_path, points=10, patch_pictures=0)


def test_it_needs_nothing_from_anywhere(evaluation, tmp_path):
    text = page_of([evaluation], tmp_path)
    assert len(text) < 10_000_000
    assert not re.search(r"(?i)https?:|//[a-z]+\.|@import", text)
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name, "#")
            assert value.startswith(("data:", "#")), (tag, value)
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert links <= {a.get("id") for _, a in page.tags}
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )


def test_the_same_evaluations_in_any_order_of_samples_give_the_same_bytes(evaluation, tmp_path):
    order = torch.randperm(45, generator=torch.Generator().manual_seed(0))
    mixed = replace(
        evaluation, features={name: f.at(order) for name, f in evaluation.features.items()}
    )
    for name, each in (("a", evaluation), ("b", evaluation), ("c", mixed)):
        write_report([each], tmp_path / name)
    for file in ("report.html", "embedding.csv"):
        first, again, permuted = (tmp_path / name / file for name in "abc")
        assert first.read_bytes() == again.read_bytes()
        assert first.read_bytes() == permuted.read_bytes()


EVIL = ("<script>alert(1)</script>", "</script><b>&amp;", "\"quotes' onload=x")


def test_what_users_named_is_text(evaluation, tmp_path):
    measure = Measure("<i>knn</i>", 0.5, "<b>protocol</b>", None, 0.1)
    changed = renamed(
        evaluation,
        EVIL,
        subject=replace(evaluation.subject, name=evaluation.subject.name + "<u>"),
        measures={"trained": (measure,)},
        note="<em>note</em>",
    )
    text = page_of([changed], tmp_path)
    page = Page(text)
    assert len(page.scripts) == 2
    assert json.loads(page.scripts[0])["names"][:3] == list(EVIL)
    assert not {"i", "u", "em"} & {tag for tag, _ in page.tags}
    assert "alert(1)" not in page.scripts[1]
    for name in EVIL:
        assert name in [row[0] for row in page.rows if row], "as a class of the confusions"
        assert name in " ".join(page.words)


def test_confusions_on_the_page_sum_to_the_samples(evaluation, tmp_path):
    page = Page(page_of([evaluation], tmp_path))
    classes = evaluation.features["trained"].classes
    rows = [row for row in page.rows if len(row) == 4 and row[0] in classes]
    counts = [[int(cell or 0) for cell in row[1:]] for row in rows[:3]]
    assert [sum(row) for row in counts] == [15, 15, 15]
    shown = {row[0]: row[1:3] for row in rows[3:]}
    assert {name: int(row[0]) for name, row in shown.items()} == {
        name: counts[i][i] for i, name in enumerate(classes)
    }


def test_checkpoints_stand_side_by_side(evaluation, tmp_path):
    late = evaluation.features["trained"]
    early = replace(late, features=late.features.flip(0)[:, :32])  # another width, other features
    other = replace(
        evaluation,
        subject=replace(evaluation.subject, name=evaluation.subject.name.replace("last", "early")),
        features={**evaluation.features, "trained": early},
    )
    page = Page(page_of([evaluation, other], tmp_path))
    (head,) = [row for row in page.rows if row[:1] == ["measure"] and "chance" in row]
    assert head[1:6] == ["last.pt", "early.pt", "untrained", "raw pixels", "chance"]
    panels = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "map"]
    assert len(panels) == 3
    rows = list(csv.DictReader((tmp_path / "embedding.csv").read_text().splitlines()))
    uids = [[r["uid"] for r in rows if r["checkpoint"] == n] for n in ("last.pt", "early.pt")]
    assert uids[0] == uids[1]
    assert len(set(uids[0])) == 45


def test_a_test_set_is_what_is_looked_at(with_test, tmp_path):
    text = page_of([with_test], tmp_path)
    rows = list(csv.DictReader((tmp_path / "embedding.csv").read_text().splitlines()))
    assert {int(r["uid"]) for r in rows} == set(with_test.tested["trained"].uids.tolist())
    assert "15 test samples" in text
    assert "lie in the training set and in the test set" in text


def test_duplicates_are_counted_and_told(evaluation, tmp_path):
    labels = evaluation.features["trained"].labels
    differ = "1 groups have more than one label" in page_of([evaluation], tmp_path)
    assert differ == (labels[3] != labels[7])
    unknown = renamed(evaluation, ("a", "b", "c"))
    bare = {n: replace(f, contents=torch.empty(0)) for n, f in unknown.features.items()}
    assert "Not known: the evaluation" in page_of([replace(unknown, features=bare)], tmp_path)


def test_a_set_without_labels_has_a_page(evaluation, tmp_path):
    bare = {n: replace(f, labels=torch.full((45,), -1)) for n, f in evaluation.features.items()}
    free = {"trained": evaluation.measures["trained"][2:]}
    page = Page(page_of([replace(evaluation, features=bare, measures=free)], tmp_path))
    assert "Mistakes" not in page.words
    assert "No measure with labels." in " ".join(page.words)


def test_wrong_input(evaluation, tmp_path):
    with pytest.raises(SslpipeError, match="there is no evaluation; give at least one"):
        write_report([], tmp_path)
    with pytest.raises(SslpipeError, match="unknown map 'umap'"):
        ReportSettings(projection="umap")
    trained = evaluation.features["trained"]
    fewer = replace(evaluation, features={"trained": trained.at(torch.arange(40))})
    with pytest.raises(SslpipeError, match="was evaluated on other samples than the first"):
        write_report([evaluation, fewer], tmp_path)
    strange = {"trained": replace(trained, uids=trained.uids + 1)}
    with pytest.raises(SslpipeError, match="has no sample of uid"):
        write_report([replace(evaluation, features=strange)], tmp_path)
    two = {"trained": trained.at(torch.arange(2))}
    with pytest.raises(SslpipeError, match="a map of 2 samples says nothing"):
        write_report([replace(evaluation, features=two)], tmp_path)
    with pytest.raises(SslpipeError, match="has no features of the trained encoder"):
        write_report([replace(evaluation, features={})], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SslpipeError, match="the report cannot be written"):
        write_report([evaluation], tmp_path / "file", ReportSettings(points=9, patch_pictures=0))


def test_confusion_against_scikit_learn():
    from sklearn.metrics import confusion_matrix

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 6, (200,), generator=generator).numpy()
    guessed = torch.randint(-1, 6, (200,), generator=generator).numpy()
    names = tuple("abcdef")
    known = labels >= 0
    reference = confusion_matrix(labels[known], guessed[known], labels=range(6))
    made = confusion(labels, guessed, names, largest=6)
    assert [row[:-1] for row in map(list, made.counts)] == reference.tolist()
    sizes = [int((labels == i).sum()) for i in range(6)]
    assert [sum(row) for row in made.counts] == sizes
    small = confusion(labels, guessed, names, largest=3)
    assert sorted(map(sum, small.counts)) == sorted(sizes)[3:]
    assert sum(score.right for score in made.scores) == reference.trace()
    worst = min(reference[i, i] / sizes[i] for i in range(6))
    assert made.scores[0].share == worst
    off = reference - reference.diagonal() * torch.eye(6, dtype=int).numpy()
    assert made.mistakes[0].samples == off.max()


def test_templates_are_files_of_the_package():
    folder = files("sslpipe.report") / "templates"
    assert {path.name for path in folder.iterdir()} == {
        "report.html.j2", "report.css", "report.js",
    }  # fmt: skip


def test_every_mark_of_the_numbers_has_its_legend():
    """A square stands for each baseline, of whatever modality: none is listed by hand."""
    page = (
        pathlib.Path(write_report.__code__.co_filename).parent / "templates/report.html.j2"
    ).read_text()
    assert 'if c.kind not in ("trained", "untrained") %}<span><svg' in page
