"""Tasks of the lm-evaluation-harness, through its own class for models of transformers."""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lpa.errors import UserError, first_line
from lpa.eval.loading import load_with_tokenizer
from lpa.storage.records import load_yaml


def run_harness(
    model_path: Path,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Evaluate a model on tasks of lm-eval.

    Args:
        model_path: a run directory or a Hugging Face directory.
        tasks: names that lm-eval knows, or paths of your own task files.
        num_fewshot: examples before each question; None: what the task says. A task that says 0 takes
            no others.
        limit: at most so many examples of each task, or a fraction below 1.
        batch_size: requests per forward pass.
        device, dtype: as in `load_with_tokenizer`.

    Returns:
        What `lm_eval.simple_evaluate` returns: `results` and `n-shot` by task, and `samples`.

    Raises:
        UserError: lm-eval is not installed, or knows no such task; no model there; data of a task
            cannot be loaded; a task does not take so many examples.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "the harness needs lm-eval, which is not installed: pip install 'lpa[harness]'"
        )
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names, folders = _task_names(tasks)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant here
    # Reading the thousands of tasks that it carries takes seconds, so only where one is named.
    manager = TaskManager(include_path=folders or None, include_defaults=len(folders) < len(names))
    for name in names:
        if not manager.match_tasks([name]):
            raise UserError(
                f"--tasks: got {name!r}; expected a task that `lm-eval ls tasks` lists, or a task file"
            )
    model, tokenizer = load_with_tokenizer(model_path, device, dtype=dtype)
    harness = HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=tokenizer,
        batch_size=batch_size,
        device=str(model.device),
    )
    try:
        with _cache_that_can_be_written():
            if num_fewshot:
                _check_fewshot(manager.load(list(names))["tasks"], num_fewshot)
            results = simple_evaluate(
                harness,
                tasks=list(names),
                num_fewshot=num_fewshot,
                limit=limit,
                task_manager=manager,
                bootstrap_iters=1000,
            )
    except UserError:
        raise
    # A task is code and data of others: whatever it raises, the hub's errors among it.
    except Exception as error:
        raise UserError(
            f"--tasks {' '.join(tasks)}: lm-eval failed: {first_line(error)}"
        ) from error
    assert results is not None, "only other ranks get none"
    return results


def _check_fewshot(tasks: dict[str, Any], num_fewshot: int) -> None:
    """Refuses examples for a task that its file fixes at none, which lm-eval would leave so in silence."""
    without = [name for name, task in tasks.items() if task.get_config("num_fewshot") == 0]
    if without:
        raise UserError(
            f"--num-fewshot: got {num_fewshot}; expected 0 for {', '.join(without)}, whose file has "
            "`num_fewshot: 0`, which lm-eval does not override"
        )


@contextmanager
def _cache_that_can_be_written() -> Iterator[None]:
    """A temporary cache of datasets where the usual one, below the home directory, cannot be made."""
    from datasets import config

    try:
        Path(config.HF_DATASETS_CACHE).mkdir(parents=True, exist_ok=True)
        usual = os.access(config.HF_DATASETS_CACHE, os.W_OK)
    except OSError:
        usual = False
    if usual:
        yield
        return
    variables = ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH")
    before = {name: getattr(config, name) for name in variables}
    with tempfile.TemporaryDirectory(prefix="lpa-datasets-") as folder:
        try:
            for name in variables:
                setattr(config, name, Path(folder, name.lower()))
            yield
        finally:
            for name, value in before.items():
                setattr(config, name, value)


def _task_names(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Task names, and the folders of those that were given as files."""
    names, folders = [], []
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
            continue
        path = Path(task)
        try:
            described = load_yaml(path, _TaskLoader)
        except UserError as error:
            raise UserError(f"--tasks {error}") from error
        name = described.get("task") if isinstance(described, dict) else None
        if not isinstance(name, str):
            raise UserError(f"--tasks {task}: has no `task: NAME`")
        names.append(name)
        folders.append(str(path.resolve().parent))
    return names, folders


class _TaskLoader(yaml.SafeLoader):
    """Reads a task file for its name alone; the functions that it names are lm-eval's to load."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)
