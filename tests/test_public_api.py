"""What `import lpa` offers, and that the command line is a thin shell over it."""

import dataclasses
import importlib
import inspect
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest
import torch

import lpa as package
from lpa.cli import COMMANDS
from lpa.cli.train import SECTIONS
from lpa.errors import UserError
from lpa.eval.glue.finetune import FineTuningConfig
from lpa.train.config import RunConfig

NAMES = [
    *("LPAConfig", "LPAForCausalLM", "LPAForSequenceClassification", "LowRankLinear"),
    *("LatentCache", "RunConfig", "prepare", "train", "evaluate_perplexity", "compare"),
    *("factorize", "load", "merge", "plan", "push"),
    *("list_runs", "run_bench", "run_study", "write_report"),
]

# Command -> the function that it is a shell over.
FUNCTIONS = {
    "prepare": "prepare",
    "train": "train",
    "eval perplexity": "evaluate_perplexity",
    "eval compare": "compare",
    "convert factorize": "factorize",
    "convert merge": "merge",
    "plan": "plan",
    "push": "push",
    "runs": "list_runs",
    "bench": "run_bench",
    "study": "run_study",
    "report": "write_report",
}

# Likewise, where the function is not of those that `import lpa` offers.
FUNCTIONS_OF_MODULES = {
    "data stats": "lpa.data.stats:data_stats",
    "data show": "lpa.data.stats:sample_documents",
    "data verify": "lpa.data.stats:verify_data",
    "presets": "lpa.model.presets:preset_parameters",
    "eval glue": "lpa.eval.glue.run_glue:run_glue",
    "convert import-published": "lpa.convert.import_published:import_published",
    "eval minimal-pairs": "lpa.eval.minimal_pairs.evaluate:evaluate_minimal_pairs",
    "eval harness": "lpa.eval.harness:run_harness",
    "analyze": "lpa.eval.analysis.analyze:analyze",
    "generate": "lpa.eval.generate:generate_text",
    "convert gguf": "lpa.convert.gguf.gguf_export:export_gguf",
    "demo": "lpa.study.demo.demo:run_demo",
}

# What functions call a model that can only be a path.
PATHS_OF_MODELS = ("model_path", "directory")

# Options that say how a command speaks; a recipe; and those that do something else in its place: a plan of
# a run, the costs of the study's rivals.
OF_THE_SHELL = {
    *("help", "json", "log_level", "config", "print_config", "dry_run", "simulate", "processes"),
    "rivals",
}

# Arguments that only a Python caller can have a use for.
OF_PYTHON = {
    *("on_progress", "on_start", "on_state", "show_bar", "config"),
    *("tokenizer", "tokenizer_a", "tokenizer_b", "reinitialize"),  # of live models
    "threads",
}

# Required by the command, as a path needs it; a live model does not.
NEEDED_BY_PATHS = {
    *(("convert factorize", "out"), ("convert merge", "out"), ("convert import-published", "out")),
    ("train", "out"),
}

# Required by the function alone, as the command has something for whoever gives nothing.
OFFERED_BY_COMMANDS = {("generate", "prompt"), ("demo", "out"), ("study", "out")}

# Arguments that hold several options.
GROUPS_OF_OPTIONS = {("eval glue", "settings"): FineTuningConfig}

# Of Python alone in most commands, and an option in these.
ALSO_OPTIONS = {("prepare", "tokenizer"), ("bench", "threads")}


def parser_of(command):
    return importlib.import_module(COMMANDS[command][0]).build_parser()


def options_of(command) -> dict[str, inspect.Parameter]:
    """Option -> its default, or `inspect.Parameter.empty` where it must be given."""
    parser = parser_of(command)
    left_out = OF_THE_SHELL | (set(SECTIONS) if command == "train" else set())
    return {
        action.dest: inspect.Parameter.empty if action.required else parser.get_default(action.dest)
        for action in parser._actions
        if action.dest not in left_out
    }


def plain(default):
    """A default as it counts: nothing is nothing, however it is written."""
    default = list(default) if isinstance(default, tuple) else default
    return None if (default in ([], False) and default != 0) or default is False else default


def test_every_name_is_there_and_documented():
    for name in NAMES:
        thing = getattr(package, name)
        assert name in dir(package)
        if name in FUNCTIONS.values() or name == "load":
            documented = (
                importlib.import_module("lpa.train.run").train if name == "train" else thing
            )
            for part in ("Args:", "Returns:", "Raises:", "Example:"):
                assert part in documented.__doc__, (name, part)


def test_the_import_is_light():
    """It takes about as long as asyncio, a larger module of the standard library, on any machine."""
    heavy = {"torch", "transformers", "pydantic", "datasets", "numpy"}
    best = {"lpa": inf, "asyncio": inf}  # of several turns, as other processes take from the caches
    for _ in range(10):
        for module in best:
            script = f"""
import sys, time
start = time.process_time()
import {module}
print(time.process_time() - start, *({heavy} & set(sys.modules)))
"""
            printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
            [seconds] = printed.stdout.split()  # and no module
            best[module] = min(best[module], float(seconds))
        if best["lpa"] < 1.5 * best["asyncio"]:
            return
    pytest.fail(f"took {best} s")


@pytest.mark.xdist_group("elsewhere")
@pytest.mark.parametrize("first", ["lpa.train.trainer", "lpa"])
def test_train_is_callable_whatever_was_imported_first(elsewhere, first):
    script = f"""
import {first}
import lpa, inspect
from lpa.errors import UserError
from lpa.eval.glue.finetune import FineTuningConfig
assert "resume" in inspect.signature(lpa.train).parameters
try:
    lpa.train("absent.yaml", "out")
except UserError as error:
    print(error)
"""
    done = elsewhere(script)
    assert "absent.yaml" in done.stdout, done.stderr


def function_of(command):
    if command in FUNCTIONS:
        return getattr(package, FUNCTIONS[command])
    module, _, name = FUNCTIONS_OF_MODULES[command].partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("command", [*FUNCTIONS, *FUNCTIONS_OF_MODULES])
def test_a_command_has_the_arguments_and_defaults_of_its_function(command):
    function = function_of(command)
    parameters = {
        "model" if name in PATHS_OF_MODELS else name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in OF_PYTHON or (command, name) in ALSO_OPTIONS
    }
    for (owner, name), group in GROUPS_OF_OPTIONS.items():
        if owner == command:
            del parameters[name]
            parameters |= {field.name: field.default for field in dataclasses.fields(group)}
    options = {name: default for name, default in options_of(command).items() if "." not in name}
    assert set(options) == set(parameters)
    for name, default in options.items():
        if (command, name) in NEEDED_BY_PATHS | OFFERED_BY_COMMANDS:
            continue
        assert plain(default) == plain(parameters[name]), name


def test_every_command_has_its_function():
    assert {*FUNCTIONS, *FUNCTIONS_OF_MODULES} == set(COMMANDS)


def test_the_recipe_fields_are_those_of_the_configuration():
    options = {name: default for name, default in options_of("train").items() if "." in name}
    fields = {}
    for section in dataclasses.fields(RunConfig):
        kind = importlib.import_module("lpa.train.config").__dict__[section.type.__name__]
        for field in dataclasses.fields(kind):
            default = field.default
            if default is dataclasses.MISSING:
                default = inspect.Parameter.empty
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            fields[f"{section.name}.{field.name.rstrip('_')}"] = default
    assert options == fields


def test_live_models_and_paths_give_the_same(run, prepared, tmp_path):
    model = package.load(run, dtype="float32")
    tokenizer = importlib.import_module("lpa.data").load_tokenizer(run / "final")
    live = package.evaluate_perplexity(model, prepared, tokenizer=tokenizer)
    assert live == package.evaluate_perplexity(str(run), str(prepared), device="cpu")
    assert package.plan(model) == package.plan(run) == package.plan(model.config)
    assert package.compare(model, run, prepared, tokenizer_a=tokenizer, device="cpu").change == 0
    merged = package.merge(model)
    result = package.merge(str(run), str(tmp_path / "merged"))
    assert merged.num_parameters() == result.parameters_merged
    package.factorize(merged, rank=4)
    factorized = package.factorize(
        tmp_path / "merged", rank=4, out=tmp_path / "factorized", device="cpu"
    )
    ids = torch.arange(8)[None]
    again = package.load(tmp_path / "factorized", dtype="float32")
    torch.testing.assert_close(merged(ids).logits, again(ids).logits, atol=1e-4, rtol=1e-4)
    assert factorized.parameters == sum(p.numel() for p in again.parameters())


def test_a_live_model_is_factorized_by_text_too(run, tmp_path):
    package.merge(run, tmp_path / "merged")
    tokenizer = importlib.import_module("lpa.data").load_tokenizer(run / "final")
    text = tmp_path / "text.txt"
    text.write_text("My fellow Americans, the state of our union is strong. " * 60)
    options = {"budget": "parameters=0.6", "calibration_data": text, "seq_len": 16}
    live = package.load(tmp_path / "merged")
    replaced = package.factorize(live, tokenizer=tokenizer, **options)
    result = package.factorize(
        tmp_path / "merged", out=tmp_path / "factorized", device="cpu", **options
    )
    assert {name: live.get_submodule(name).rank for name in replaced} == result.ranks


def test_arguments_that_do_not_go_together_are_refused(run, prepared, tmp_path):
    model = package.load(run)
    for call, words in (
        (lambda: package.merge(run), "out: got nothing"),
        (lambda: package.merge(model, tmp_path / "x"), "save_pretrained"),
        (lambda: package.factorize(run, rank=4), "out: got nothing"),
        (lambda: package.factorize(model, rank=4, out=tmp_path / "x"), "save_pretrained"),
        (lambda: package.factorize(run, rank=4, out="x", reinitialize=True), "live model"),
        (lambda: package.evaluate_perplexity(model, prepared), "tokenizer: got none"),
        (
            lambda: package.evaluate_perplexity(run, prepared, tokenizer=1),
            "works only with a live model",
        ),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [str, Path])
def test_one_of_several_may_be_given_by_itself(tmp_path, monkeypatch, run, kind):
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("Words and more words, said the man.\n" * 200)
    Path("valid.txt").write_text("Other words, said the woman.\n" * 20)
    package.prepare(kind("train.txt"), "data", vocab_size=300, validation=kind("valid.txt"))
    [row] = package.list_runs(kind(run))
    assert row.name == str(run)
    assert package.RunConfig.load(kind(run / "config.yaml")).train.steps


def test_what_is_no_model_is_named(prepared):
    for model in (torch.nn.Linear(2, 2), None):
        for arguments in ((model, prepared), (model, prepared, None)):
            with pytest.raises(UserError, match=f"model: got a {type(model).__name__}; expected"):
                package.evaluate_perplexity(*arguments[:2], tokenizer=arguments[2:] and object())
