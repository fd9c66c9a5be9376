"""Recipes: files that say some of a run's configuration."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, get_type_hints

from lpa.errors import UserError, expected_one_of
from lpa.storage.records import parse_value, read_yaml
from lpa.train.config import RunConfig, TrainConfig
from lpa.train.config.sections import DEFAULT_SEQ_LEN


def check_recipe(path: Path, settled: Collection[str] = ()) -> None:
    """Whether a file is a recipe whose values are of the declared types; options may add what it lacks.

    Names of fields are left to the parser of the command line.

    Args:
        settled: fields of `train` that options decide, whatever the recipe says.

    Raises:
        UserError: naming the file and the field.
    """
    recipe = read_yaml(path, dict[str, Any])
    sections = get_type_hints(RunConfig)
    for name in recipe:
        if name not in sections:
            raise UserError(f"{path}: section: got {name}; {expected_one_of(name, sections)}")
    for section, kind in sections.items():
        values = parse_value(recipe.get(section, {}), dict[str, Any], where=path, field=section)
        declared = get_type_hints(kind, include_extras=True)
        for name, value in values.items():
            own = "from_" if (section, name) == ("model", "from") else name
            if own in declared:
                parse_value(value, declared[own], where=path, field=f"{section}.{name}")
    seq_len = recipe.get("data", {}).get("seq_len") or 0
    if not seq_len and recipe.get("model", {}).get("from") is None:
        seq_len = DEFAULT_SEQ_LEN
    try:
        TrainConfig.check_lengths(recipe.get("train", {}), seq_len, settled)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
