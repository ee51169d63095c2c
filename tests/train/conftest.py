import importlib.util
import signal
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def ctrl_c():
    """As in a terminal: what runs in the background of a script ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def toy():
    """tests/train/toy.py as the importable module `toy`."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module
    spec.loader.exec_module(module)
    return module
