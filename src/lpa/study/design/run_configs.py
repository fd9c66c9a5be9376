"""The configuration of a run, and of its model, from dotted fields."""

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from lpa.errors import LPAWarning
from lpa.model.configuration_lpa import LPAConfig
from lpa.train.config import RunConfig


def run_config(settings: dict[str, Any]) -> RunConfig:
    """From dotted fields.

    Raises:
        UserError: a field that does not exist, or a value that it does not accept.
    """
    sections: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections[section][key] = value
    sections["data"].setdefault("path", Path("data"))
    return RunConfig.from_dict(sections)


def total_tokens(config: RunConfig) -> int:
    return config.train.steps * config.train.batch_size * config.data.seq_len


def build_model_config(config: RunConfig, vocab_size: int) -> LPAConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LPAWarning)  # a rank beyond break-even is meant here
        return config.model.build(vocab_size=vocab_size, seq_len=config.data.seq_len)
