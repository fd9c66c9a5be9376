"""Parses the arguments of `lpa` or of a script with its own parser, and ends before anything is done.

`parse_only.py lpa ARGUMENT…` or `parse_only.py SCRIPT ARGUMENT…`; exits with 3 where nothing was parsed.
"""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import lpa.cli
from lpa.cli.parsing import Parser


def end_after_parsing(kind: type) -> None:
    parse = kind.parse_args

    def parse_and_end(*arguments: Any, **options: Any) -> None:
        parse(*arguments, **options)
        raise SystemExit(0)

    kind.parse_args = parse_and_end


program, sys.argv = sys.argv[1], sys.argv[1:]
if program == "lpa":
    end_after_parsing(Parser)
    lpa.cli.main()
else:
    end_after_parsing(argparse.ArgumentParser)
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")
raise SystemExit(3)
