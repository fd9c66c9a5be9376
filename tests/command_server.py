"""Runs the command line in processes of its own that need not import everything anew.

Started once for each test process. It imports what commands import, and for every line of JSON on its
standard input it forks: the child is the command, with its own standard streams and working folder. It
computes nothing itself, so that a child starts as a fresh interpreter would, only seconds sooner.
"""

import importlib
import json
import os
import sys
import traceback

PRELOADED = [
    "lpa.convert.merge",
    "lpa.data.preparation",
    "lpa.eval.generation",
    "lpa.eval.perplexity",
    "lpa.study.bench",
    "lpa.train.run",
]


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_the_command(**request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _be_the_command(arguments: list[str], cwd: str, stdout: str, stderr: str) -> None:
    """Never returns."""
    from lpa.cli import main as lpa

    code = 1
    try:
        os.chdir(cwd)
        for descriptor, path in ((0, os.devnull), (1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_RDWR), descriptor)
        sys.argv = ["lpa", *arguments]
        lpa()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
