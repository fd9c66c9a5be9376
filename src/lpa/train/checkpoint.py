"""Checkpoints: safetensors and JSON, whole or absent, nothing that unpickles."""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lpa.errors import UserError
from lpa.files import new_directory

_NAME = re.compile(r"step-(\d{8})")


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on.
        train_seconds: time spent in training steps, without evaluation and saving.
        wall_seconds: time since the run began, all processes together.
        peak_memory_bytes: the most memory that one of its processes held.
        pending_loss, pending_steps, pending_seconds: sums since the last record in the metrics, so
            that a run that goes on leaves the same records as one that was never stopped.
    """

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0
    pending_loss: float = 0.0
    pending_steps: int = 0
    pending_seconds: float = 0.0


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(
        path for path in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)
    )


def save_checkpoint(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    data_sha256: str,
    keep: int,
) -> Path:
    """Write `checkpoints/step-…` and delete all but the `keep` latest."""
    path = run / "checkpoints" / f"step-{progress.step:08d}"
    with new_directory(path, overwrite=True) as directory:
        save_file(_weights(model), directory / "model.safetensors")
        save_file(_optimizer_tensors(model, optimizer), directory / "optimizer.safetensors")
        save_file(_random_states(), directory / "random.safetensors")
        state = {"progress": asdict(progress), "data_sha256": data_sha256}
        (directory / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return path


def load_checkpoint(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, data_sha256: str
) -> Progress:
    """Load the latest checkpoint of a run into a model and its optimizer.

    Raises:
        UserError: there is none, it is damaged, or it was trained on other tokens.
    """
    path = latest_checkpoint(run)
    try:
        state = json.loads((path / "state.json").read_text())
        progress = Progress(**state["progress"])
        if state["data_sha256"] != data_sha256:
            raise UserError("data.path: holds other tokens than the run began with")
        weights = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors")
        random = load_file(path / "random.safetensors")
    except UserError:
        raise
    # SafetensorError, the library's own, derives from Exception alone.
    except Exception as error:
        raise UserError(
            f"{path}: checkpoint is damaged ({error}); delete it to use the one before"
        ) from error
    _restore_weights(model, weights)
    _restore_optimizer(model, optimizer, moments)
    _restore_random_states(random)
    return progress


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run directory.

    Raises:
        UserError: the directory does not exist or has none.
    """
    if not run.is_dir():
        raise UserError(f"--resume: {run}: no such run directory; start it without --resume")
    found = checkpoints(run)
    if not found:
        raise UserError(f"--resume: {run}: has no checkpoint; start anew with another --out")
    return found[-1]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters under their first name: safetensors refuses the second name of a tied one."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


@torch.no_grad()
def _restore_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of each parameter under `<state>/<parameter>`."""
    return {
        f"{key}/{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
