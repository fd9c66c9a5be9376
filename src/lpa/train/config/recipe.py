"""Recipes: files that say some of a run's configuration."""

from pathlib import Path
from typing import Any, get_type_hints

from lpa.storage.records import read_yaml, typed
from lpa.train.config import RunConfig


def check_recipe(path: Path) -> None:
    """Whether a file is a recipe whose values are of the declared types; options may add what it lacks.

    Names of sections and fields are left to the parser of the command line.

    Raises:
        UserError: naming the file and the field.
    """
    recipe = read_yaml(path, dict[str, Any])
    for section, kind in get_type_hints(RunConfig).items():
        values = typed(recipe.get(section, {}), dict[str, Any], where=path, field=section)
        declared = get_type_hints(kind, include_extras=True)
        for name, value in values.items():
            own = "from_" if (section, name) == ("model", "from") else name
            if own in declared:
                typed(value, declared[own], where=path, field=f"{section}.{name}")
