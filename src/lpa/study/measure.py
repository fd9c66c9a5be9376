"""Perplexity of a finished run on held-out text, kept beside it: `python -m lpa.study.measure RUN DATA`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from lpa.eval.perplexity import evaluate_perplexity
from lpa.files import write_text
from lpa.study.runner import TEST_FILE


def main() -> None:
    run, data = map(Path, sys.argv[1:])
    train = yaml.safe_load((run / "config.yaml").read_text())["train"]
    test = evaluate_perplexity(run, data, device=train["device"], threads=train["threads"])
    write_text(run / TEST_FILE, json.dumps(asdict(test), indent=2) + "\n")


if __name__ == "__main__":
    main()
