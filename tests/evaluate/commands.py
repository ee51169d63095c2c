"""Runs commands of sslpipe in one process, one behind the other, with parts of 8 samples.

`commands.py PLAN`: a JSON file, a list of commands; each is a list of words.
"""

import json
import sys
from pathlib import Path

from sslpipe.cli.commands import main
from sslpipe.evaluate import feature_parts

feature_parts.PART = 8

if __name__ == "__main__":
    for words in json.loads(Path(sys.argv[1]).read_text()):
        sys.argv = ["sslpipe", *words]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
