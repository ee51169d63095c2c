"""`write_report`: evaluations -> report.html and embedding.csv. Here is what stands on the page."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import ExtraError, SslpipeError
from ..evaluate.results import Evaluation
from ..shards.side_files import replace_file
from .embedding import write_csv
from .facts import facts
from .pictures import SampleFinder
from .run_curves import charts, read_runs
from .samples import ReportSettings, looks
from .scatter import Scatter, scatter
from .sections import confusions, neighbour_rows, patch_rows, repeated
from .tables import columns_of, rows_of, short_names, shown_value, verdict

DEFAULTS = ReportSettings()
PAGE, TABLE = "report.html", "embedding.csv"


def write_report(
    evaluations: Sequence[Evaluation],
    out: Path,
    settings: ReportSettings = DEFAULTS,
    say: Callable[[str], object] = lambda _: None,
) -> Path:
    """Write OUT/report.html and OUT/embedding.csv; gives the path of the page.

    Several evaluations are checkpoints side by side: of the same samples, in the same basis. The
    same evaluations give the same bytes.

    Raises:
        SslpipeError: no evaluations; of other samples; or the shards lack samples; a projection
            that does not exist.
        ExtraError: jinja2 or scikit-learn is not installed.
    """
    template = page_template()
    with ExitStack() as stack:
        seen = looks(evaluations, settings)
        first = evaluations[0]
        bank = stack.enter_context(SampleFinder(first.shards))
        asked = bank if first.test is None else stack.enter_context(SampleFinder(first.test))
        say("report: map")
        drawn = scatter(seen, asked, settings)
        say("report: pictures")
        context = {
            **numbers(evaluations),
            "runs": read_runs(evaluations),
            "map": drawn,
            "queries": neighbour_rows(seen, bank, asked, settings),
            "confusions": confusions(seen, settings.classes),
            "patches": patch_rows(seen, asked, settings),
            "repeated": repeated(first, bank, asked),
            "facts": facts(evaluations),
        }
    context["charts"] = charts(context["runs"])
    context["run_names"] = short_names([str(run.folder) for run in context["runs"]] or [""])
    return written(out, template.render(**context, **assets(), points=json_data(drawn)), drawn)


def numbers(evaluations: Sequence[Evaluation]) -> Mapping[str, Any]:
    """The verdict, and the rows of the tables: with labels, of guessed tokens, and label-free."""
    columns = columns_of(evaluations)
    rows = rows_of(columns)
    return {
        "names": short_names([evaluation.subject.name for evaluation in evaluations]),
        "first": evaluations[0],
        "columns": columns,
        "labelled_rows": [row for row in rows if not (row.label_free or row.guesses)],
        "guess_rows": [row for row in rows if row.guesses],
        "free_rows": [row for row in rows if row.label_free],
        "verdict": verdict(rows, columns),
        "note": next((e.note for e in evaluations if e.note), ""),
    }


def page_template() -> Any:
    """The template of the page; everything that goes into it is escaped.

    Raises:
        ExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ExtraError("report: jinja2 is not installed; pip install 'sslpipe[train]'") from error
    environment = Environment(
        loader=PackageLoader("sslpipe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = shown_value
    environment.filters["figures"] = "{:.3g}".format
    return environment.get_template("report.html.j2")


def assets() -> Mapping[str, Any]:
    """Style and script, which are ours and stand in the page as they are."""
    from markupsafe import Markup

    folder = files("sslpipe.report") / "templates"
    texts = {
        kind: (folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    }
    return {kind: Markup(text) for kind, text in texts.items()}  # noqa: S704


def json_data(drawn: Scatter) -> Any:
    """What the script knows of the points, as JSON that cannot end its <script> element."""
    from markupsafe import Markup

    text = json.dumps(drawn.data, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704


def written(out: Path, page: str, drawn: Scatter) -> Path:
    """Write both files.

    Raises:
        SslpipeError: the folder cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / PAGE, page.encode())
        write_csv(out / TABLE, drawn.placed)
    except OSError as error:
        raise SslpipeError(
            f"{out}: the report cannot be written ({error.strerror}); name another folder"
        ) from error
    return out / PAGE
