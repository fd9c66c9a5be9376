"""The command line: one module per command, imported only when that command runs."""

import importlib
import sys
import warnings
from typing import Any

from lpa.cli.process import command_process, exit_with_error

# Command -> (module, one line of help). A nested command is written with a space.
COMMANDS = {
    "prepare": ("lpa.cli.data.prepare", "turn documents into tokens on disk"),
    "data stats": ("lpa.cli.data.stats", "show what a prepared data directory holds"),
    "data show": ("lpa.cli.data.show", "print decoded documents of prepared data"),
    "data verify": ("lpa.cli.data.verify", "check the checksums of prepared data"),
    "train": ("lpa.cli.train", "train a model from a recipe"),
    "runs": ("lpa.cli.runs", "tabulate runs, finished or not"),
    "eval perplexity": ("lpa.cli.eval.perplexity", "score a model on held-out text"),
    "eval compare": ("lpa.cli.eval.compare", "compare two models on the same text"),
    "eval minimal-pairs": (
        "lpa.cli.eval.minimal_pairs",
        "test a model's grammar on pairs of sentences",
    ),
    "eval glue": ("lpa.cli.eval.glue", "fine-tune and score models on GLUE tasks"),
    "eval harness": ("lpa.cli.eval.harness", "run tasks of the lm-evaluation-harness"),
    "analyze": ("lpa.cli.eval.analyze", "show which projections tolerate low rank"),
    "generate": ("lpa.cli.eval.generate", "continue a prompt"),
    "convert factorize": ("lpa.cli.convert.factorize", "truncate a dense checkpoint to low rank"),
    "convert merge": ("lpa.cli.convert.merge", "merge low-rank pairs into a stock model"),
    "convert gguf": ("lpa.cli.convert.gguf", "write a merged model as a GGUF file"),
    "convert import-published": (
        "lpa.cli.convert.import_published",
        "read a checkpoint of the published LPA code",
    ),
    "push": ("lpa.cli.hub.push", "send a model to the Hugging Face hub"),
    "plan": ("lpa.cli.plan", "compute what a model costs before it exists"),
    "bench": ("lpa.cli.bench", "measure what low rank saves on this machine"),
    "presets": ("lpa.cli.presets", "list the named architectures"),
    "study": ("lpa.cli.study", "run an experiment of the paper"),
    "report": ("lpa.cli.report", "show the results of studies on one page"),
    "demo": ("lpa.cli.demo", "train dense and LPA side by side"),
}

_PURPOSE = "Pre-train language models with low-rank attention, beside their dense baselines."

# The first word of nested commands -> what they have in common.
GROUPS = {
    "data": "Inspect a prepared data directory, which `lpa prepare` writes and `lpa train` reads.",
    "eval": (
        "Measure trained models: on held-out text, against each other, and on tasks. Each command "
        "takes run directories of `lpa train` and Hugging Face directories alike."
    ),
    "convert": (
        "Convert checkpoints: a dense one to low rank, a low-rank one to formats that other "
        "programs read, and weights of the published code to a Hugging Face directory."
    ),
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
    from lpa.display.logs import log_to_stderr
    from lpa.errors import LPAWarning

    log_to_stderr()
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

    _check_options(arguments)
    if "--version" in arguments:
        print(f"lpa {lpa.__version__}")
        return
    import textwrap

    lines = {name: line for name, (_, line) in COMMANDS.items()}
    words = [word for word in arguments if not word.startswith("-")]
    if words:  # not a command, so at best the name of a group such as `eval`
        group = {name: line for name, line in lines.items() if name.split()[0] == words[0]}
        if not group or len(words) > 1:
            _refuse_command(" ".join(words), list(group or lines))
        lines = group

    width = max(map(len, lines)) + 2
    group_name = f"{words[0]} " if words else ""
    print(f"usage: lpa {group_name}COMMAND [options]\n")
    print(textwrap.fill(GROUPS[words[0]] if words else _PURPOSE, 78) + "\n")
    print("\n".join(f"  {name:<{width}}{line}" for name, line in lines.items()))
    print(f"\n`lpa {group_name}COMMAND --help` explains the options of a command, with examples.")


def _check_options(arguments: list[str]) -> None:
    """Only `--help` and `--version` stand without a command, and none stands before one."""
    options = [word for word in arguments if word.startswith("-")]
    for option in options:
        if option not in ("-h", "--help", "--version"):
            exit_with_error(f"unknown option {option}; `lpa --help` lists what is accepted")
    command = " ".join(word for word in arguments if word not in options)
    if command in COMMANDS:
        if "--version" in options:
            exit_with_error("--version: takes no command; expected lpa --version")
        exit_with_error(
            f"{options[0]}: stands before the command; expected lpa {command} {options[0]}"
        )


def _refuse_command(given: str, known: list[str]) -> None:
    from lpa.errors import closest_match

    # Before the names are compared, those whose last word is the one given: `perplexity`, `merge`.
    near = [name for name in known if name.split()[-1] == given.split()[-1]]
    near = near or closest_match(given, known)
    meant = f"; did you mean lpa {near[0]}?" if near else ""
    exit_with_error(f"unknown command '{given}'; expected one of {', '.join(known)}{meant}")


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    import logging

    from lpa.errors import LPAWarning

    if issubclass(category, LPAWarning) and str(message) not in _shown:
        _shown.add(str(message))
        logging.getLogger("lpa").warning(message)


# Work that is done once per seed need not warn once per seed.
_shown: set[str] = set()
