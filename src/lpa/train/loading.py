"""Trained models from where they lie."""

from pathlib import Path
from typing import Any

from lpa.data.tokenizer import load_tokenizer
from lpa.errors import UserError


def model_directory(path: Path) -> Path:
    """The Hugging Face directory that a path means: `final/` of a run, or the path itself.

    Raises:
        UserError: there is no model at `path`.
    """
    if (path / "final" / "config.json").is_file():
        return path / "final"
    if (path / "config.json").is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"model {path}: no such directory; expected a run or a Hugging Face directory"
        )
    if (path / "config.yaml").is_file():
        raise UserError(
            f"model {path}: a run that has not finished (no final/); go on with it: lpa train … --resume"
        )
    raise UserError(f"model {path}: has no config.json; expected a run or a Hugging Face directory")


def load_model(
    path: Path, device: str = "auto", *, attention: str | None = None
) -> tuple[Any, Any]:
    """A causal language model, in evaluation mode, and its tokenizer.

    Args:
        path: a run directory or a Hugging Face directory.
        device: `auto`, `cpu`, `cuda`, …
        attention: an attention implementation of transformers; None: its choice.

    Raises:
        UserError: there is none at `path`, it is damaged, or there is no such device.
    """
    from transformers import AutoModelForCausalLM

    from lpa.train.machine import pick_device

    directory = model_directory(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype="float32", attn_implementation=attention
        )
    # Damaged files raise whatever their reader raises, SafetensorError among it.
    except Exception as error:
        raise UserError(f"model {directory}: cannot be loaded ({error})") from error
    return model.to(pick_device(device)).eval(), load_tokenizer(directory)
