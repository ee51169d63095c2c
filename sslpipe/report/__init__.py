"""One page of HTML that shows what an evaluation found: numbers, curves, map, neighbours, mistakes.

The page is a file: no server, no network, no library of JavaScript. It is made by jinja2.
"""

from .embedding import log_evaluation
from .page import write_report
from .samples import ReportSettings

__all__ = ["ReportSettings", "log_evaluation", "write_report"]
