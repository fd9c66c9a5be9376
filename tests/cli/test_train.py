"""Recipes and options of `lpa train`: which of them decides, and what is printed or refused."""

import pytest
import yaml

from lpa.train.config import RunConfig


@pytest.fixture
def recipe(prepared, tmp_path):
    """A recipe in the working directory of the commands."""
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{path: {prepared}, seq_len: 32}}\noptim: {{lr: 0.5}}\ntrain: {{tokens: 1280}}\n"
    )
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("named", [["--config", "recipe.yaml"], ["--config=recipe.yaml"]])
def test_an_option_before_the_recipe_beats_it(named, recipe, lpa):
    options = ["--optim.lr", "0.125", "--train.steps=3"]
    printed = lpa("train", *options, *named, "--print_config", cwd=recipe.parent)
    assert printed.code == 0, printed.stderr
    config = yaml.safe_load(printed.stdout)
    assert (config["optim"]["lr"], config["train"]["steps"]) == (0.125, 3)


def test_of_several_recipes_the_last_decides(recipe, lpa):
    (recipe.parent / "more.yaml").write_text("optim: {lr: 0.25, warmup_steps: 9}\n")
    order = ["recipe.yaml", "--model.rank", 4, "--config", "more.yaml", "--config=recipe.yaml"]
    printed = lpa("train", *order, "--print_config", cwd=recipe.parent)
    assert printed.code == 0, printed.stderr
    config = yaml.safe_load(printed.stdout)
    assert (config["optim"]["lr"], config["optim"]["warmup_steps"]) == (0.5, 9)
    assert config["model"]["rank"] == 4


def test_a_recipe_after_options_is_refused_with_a_hint(recipe, lpa):
    refused = lpa("train", "--optim.lr", "0.125", "recipe.yaml", cwd=recipe.parent)
    assert (refused.code, refused.stderr.count("\n")) == (2, 1)
    assert "unexpected argument recipe.yaml" in refused.stderr
    assert refused.stderr.endswith("a recipe comes first, without an option\n")
    assert "a recipe" not in lpa("runs", ".", "--json", "recipe.yaml", "--sort").stderr


def test_the_printed_configuration_is_a_recipe_of_the_same_run(recipe, lpa):
    options = ["--train.steps", 7, "--out", "run", "--resume", "--log-level", "error"]
    printed = lpa("train", recipe, *options, "--print_config", cwd=recipe.parent)
    assert printed.code == 0, printed.stderr
    again = recipe.parent / "again.yaml"
    again.write_text(printed.stdout)
    config = RunConfig.load(again)
    assert (config.train.steps, config.train.tokens, config.optim.lr) == (7, None, 0.5)
    assert lpa("train", again, "--print_config").stdout == printed.stdout
    assert lpa("train", again, "--dry-run", "--json").json["steps"] == 7


@pytest.mark.parametrize(
    "line", ["overwrite: true", "out: run", "print_config: true", "optimm: {}"]
)
def test_a_recipe_holds_sections_alone(line, recipe, lpa):
    with recipe.open("a") as file:
        file.write(f"{line}\n")
    refused = lpa("train", recipe, "--dry-run")
    assert (refused.code, refused.stderr.count("\n")) == (2, 1)
    name = line.split(":")[0]
    assert f"section: got {name}; expected one of data, model, optim, train" in refused.stderr
    assert ("did you mean optim?" in refused.stderr) == (name == "optimm")


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (["--resume"], "--resume"),
        (["--resume", "run/checkpoints/step-2", "--allow-change", "optim.lr"], "--resume"),
        (["--overwrite"], "--overwrite"),
    ],
)
def test_a_dry_run_refuses_what_it_would_ignore(options, refused, recipe, lpa):
    finished = lpa("train", recipe, "--dry-run", *options, cwd=recipe.parent)
    assert finished.code == 2
    assert finished.stderr == (
        f"lpa: error: {refused}: works only without --dry-run, which writes nothing\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "default", "needed"),
    [
        ("optim.decay_fraction", 0.5, 0.2, "--optim.schedule wsd"),
        ("distill.weight", 0.25, 0.5, "--distill.teacher MODEL"),
        ("distill.temperature", 1.5, 2.0, "--distill.teacher MODEL"),
        ("train.sample_prompt", "Once", "", "--train.sample_every STEPS"),
        ("train.sample_tokens", 5, 64, "--train.sample_every STEPS"),
    ],
)
def test_an_option_without_effect_is_refused(option, value, default, needed, recipe, lpa):
    def run(*options):
        return lpa("train", recipe, *options, "--print_config", cwd=recipe.parent)

    for given in ([f"--{option}={value}"], [f"--{option}", value]):
        refused = run(*given)
        assert refused.code == 2
        assert refused.stderr == f"lpa: error: --{option}: works only with {needed}\n"
    makes_use = needed.replace("STEPS", "5").replace("MODEL", "run").split()
    for accepted in ([f"--{option}={value}", *makes_use], [f"--{option}={default}"]):
        assert run(*accepted).code == 0
    # A recipe may hold it for runs that use it; so do those of earlier runs.
    section, name = option.split(".")
    sections = yaml.safe_load(recipe.read_text())
    sections.setdefault(section, {})[name] = value
    recipe.write_text(yaml.safe_dump(sections))
    assert run().code == 0
