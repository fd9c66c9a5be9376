"""No number in a recipe is too large, too small or none at all for what it is handed to."""

import math
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from lpa.errors import UserError
from lpa.train.config import DataConfig, ModelConfig, RunConfig, TrainConfig

EXTREMES = [-1, -(2**63), 10**31, 1e308, -1e308, math.nan, math.inf, -math.inf]


def numeric_fields() -> list[tuple[str, type, str, type]]:
    """Section, its class, field, and whether it is an int or a float."""
    found = []
    for section, kind in get_type_hints(RunConfig).items():
        hints = get_type_hints(kind)
        for field in fields(kind):
            declared = {hints[field.name], *get_args(hints[field.name])}
            if {int, float} & declared and field.name != "ranks":
                number = float if float in declared else int
                found.append((section, kind, field.name, number))
    return found


def test_there_are_fields_of_every_section():
    assert {section for section, *_ in numeric_fields()} == set(get_type_hints(RunConfig))


@pytest.mark.parametrize(("section", "kind", "name", "number"), numeric_fields())
def test_extremes_are_refused_by_name(section, kind, name, number):
    for value in map(float, EXTREMES) if number is float else [*EXTREMES, 2**63]:
        sections = {"data": {"path": "data"}, "model": {"placement": "all"}}
        sections[section] = {**sections.get(section, {}), name: value}
        with pytest.raises(UserError, match=rf"{name}: got "):
            RunConfig.from_dict(sections).model.build(vocab_size=300, seq_len=32)
        if kind is not ModelConfig:
            given = sections[section] | ({"path": Path("data")} if kind is DataConfig else {})
            with pytest.raises(UserError, match=rf"{section}.{name}: got "):
                kind(**given)


@pytest.mark.parametrize("value", [0, 2**31])
def test_a_model_has_sizes(value):
    for name in ("num_attention_heads", "num_hidden_layers", "hidden_size", "head_dim", "rank"):
        with pytest.raises(UserError, match=name):
            ModelConfig(**{name: value}).build(vocab_size=300, seq_len=32)


def test_ranks_by_layer_are_in_range():
    for rank in (0, -1, 2**63):
        with pytest.raises(UserError, match=r"ranks\.q_proj"):
            ModelConfig(ranks={"q_proj": rank}).build(vocab_size=300, seq_len=32)


@pytest.mark.parametrize(
    ("settings", "seq_len", "message"),
    [
        ({"batch_size": 2**31 - 1}, 256, "train.batch_size: got 2147483647; expected at most"),
        ({"batch_tokens": 2**31}, 256, "train.batch_tokens: got 2147483648; expected at most"),
        ({"tokens": 2**63 - 1}, 256, "train.tokens: got 9223372036854775807; expected at most"),
    ],
)
def test_no_step_holds_more_than_can_be_counted(settings, seq_len, message):
    with pytest.raises(UserError, match=message):
        RunConfig(
            data=DataConfig(Path("data"), seq_len=seq_len),
            train=TrainConfig(**settings),
        )
