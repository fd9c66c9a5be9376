"""The command line: one module per command, imported only when that command runs."""

import importlib
import sys
import warnings
from typing import Any

from lpa.cli.process import command_process, exit_with_error

# Command -> (module, one line of help). A nested command is written with a space.
COMMANDS = {
    "prepare": ("lpa.cli.prepare", "documents in, tokens on disk"),
    "data stats": ("lpa.cli.data.stats", "what a prepared data directory holds"),
    "data show": ("lpa.cli.data.show", "decoded documents of it"),
    "data verify": ("lpa.cli.data.verify", "whether it is intact"),
    "train": ("lpa.cli.train", "train a model from a recipe"),
    "runs": ("lpa.cli.runs", "tabulate runs, finished or not"),
    "eval perplexity": ("lpa.cli.eval.perplexity", "perplexity of a model on held-out text"),
    "eval compare": (
        "lpa.cli.eval.compare",
        "whether one model predicts a text better than another",
    ),
    "eval glue": ("lpa.cli.eval.glue", "fine-tune on GLUE tasks, several seeds each, and score"),
    "eval harness": ("lpa.cli.eval.harness", "tasks of the lm-evaluation-harness"),
    "analyze": ("lpa.cli.analyze", "where a model bears low rank: spectra, attention, cuts"),
    "generate": ("lpa.cli.generate", "continue a prompt"),
    "convert factorize": ("lpa.cli.convert.factorize", "cut a dense checkpoint to low rank"),
    "convert merge": ("lpa.cli.convert.merge", "fold low-rank pairs and write a stock Llama"),
    "convert gguf": ("lpa.cli.convert.gguf", "a merged model as a GGUF file for llama.cpp"),
    "convert import-published": (
        "lpa.cli.convert.import_published",
        "weights of the published LPA code",
    ),
    "plan": ("lpa.cli.plan", "what a model costs, before a weight exists"),
    "bench": ("lpa.cli.bench", "what low rank saves in time and memory on this machine"),
    "presets": ("lpa.cli.presets", "the named architectures and their sizes"),
    "study": ("lpa.cli.study", "an experiment of the paper, at the scale of your choice"),
    "report": ("lpa.cli.report", "the results of studies on one page"),
    "demo": ("lpa.cli.demo", "train dense and LPA side by side on a bundled corpus"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; a user's mistake becomes one line and exit code 2."""
    with command_process():
        arguments = sys.argv[1:] if argv is None else argv
        command, rest = _split_command(arguments)
        if command is None:
            _print_overview(arguments)
        else:
            _run(command, rest)


def _run(command: str, rest: list[str]) -> None:
    from lpa.errors import LPAWarning

    # A warning for the user is one line too, without the source line that Python would quote.
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", LPAWarning)
    importlib.import_module(COMMANDS[command][0]).main(rest)


def _split_command(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The longest command that the arguments begin with, and what is left of them."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if len(arguments) >= words and name in COMMANDS:
            return name, arguments[words:]
    return None, arguments


def _print_overview(arguments: list[str]) -> None:
    import lpa

    if "--version" in arguments:
        print(f"lpa {lpa.__version__}")
        return
    lines = {name: line for name, (_, line) in COMMANDS.items()}
    words = [word for word in arguments if not word.startswith("-")]
    if words:  # not a command, so at best the name of a group such as `eval`
        group = {name: line for name, line in lines.items() if name.split()[0] == words[0]}
        if not group or len(words) > 1:
            _refuse_command(" ".join(words), list(group or lines))
        lines = group

    width = max(map(len, lines)) + 2
    print(f"usage: lpa {words[0] + ' ' if words else ''}COMMAND [options]\n")
    print("Pre-train language models with low-rank attention, beside their dense baselines.\n")
    print("\n".join(f"  {name:<{width}}{line}" for name, line in lines.items()))
    print("\nlpa COMMAND --help tells each command's options, with examples.")


def _refuse_command(given: str, known: list[str]) -> None:
    import difflib

    # Before the names are compared, those whose last word is the one given: `perplexity`, `merge`.
    last = [name for name in known if name.split()[-1] == given.split()[-1]]
    near = last or difflib.get_close_matches(given, known, n=1)
    meant = f"; did you mean lpa {near[0]}?" if near else ""
    exit_with_error(f"unknown command '{given}'; expected one of: {', '.join(known)}{meant}")


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    from lpa.errors import LPAWarning
    from lpa.printable import printable

    if issubclass(category, LPAWarning) and str(message) not in _shown:
        _shown.add(str(message))
        print(f"lpa: warning: {printable(str(message))}", file=sys.stderr)


# Work that is done once per seed need not warn once per seed.
_shown: set[str] = set()
