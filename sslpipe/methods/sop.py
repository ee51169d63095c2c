"""ALBERT: hidden tokens, and whether two runs of sentences stand in their order.

Lan et al. 2020, arXiv:1909.11942, section 3.1.
"""

from typing import ClassVar

from .nsp import NSP


class SOP(NSP):
    """As `nsp`, of targets 'mlm' and 'sop': the same head on another question."""

    task: ClassVar[str] = "sop"
