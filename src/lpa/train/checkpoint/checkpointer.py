"""The state of a run to files and back: weights, optimizer, random numbers, progress.

Tensors go through `torch.distributed.checkpoint` in its safetensors form: every process writes its shards,
and another number of processes, or another layout, reads back what it needs. Nothing is pickled to files.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.tensor import DTensor

from lpa.errors import LPAWarning, UserError
from lpa.train.checkpoint import store
from lpa.train.checkpoint.state_matching import check_weights, drop_unsaved_states
from lpa.train.distributed.process_group import (
    OtherRankFailedError,
    World,
    all_gather_objects,
    is_of_an_exchange,
    new_host_group,
    run_on_all_ranks,
    run_on_main,
)
from lpa.train.optim.optimizers import Optimizers
from lpa.train.state import TrainState


class Checkpointer:
    """Saves and loads the checkpoints of one run, every process its part.

    Args:
        run: the run directory.
        world: who this process is.
        rng_stream: which of the run's streams of random numbers it draws from; processes that see
            the same samples share one.
        keep_latest_k: how many of the latest checkpoints to keep.
        async_save: return from `save` when the state is copied, and write it meanwhile.
    """

    def __init__(
        self,
        run: Path,
        world: World,
        model: nn.Module,
        optimizers: Optimizers,
        *,
        rng_stream: int,
        keep_latest_k: int,
        async_save: bool,
    ) -> None:
        self._run = run
        self._world = world
        self._model = model
        self._optimizers = optimizers
        self._rng_stream = rng_stream
        self._keep_latest_k = keep_latest_k
        self._async_save = async_save
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        # its own group: what the writing thread exchanges must not mix with the training's.
        self._group = new_host_group() if world.size > 1 else None

    def save(self, state: TrainState, fingerprints: dict[str, str]) -> None:
        """Write the checkpoint of this step.

        Args:
            fingerprints: field -> hash of what was trained on, compared when the run is resumed.

        Raises:
            UserError: it, or an asynchronous one before it, could not be written.
        """
        self.wait()
        partial = store.partial_path(self._run, state.step)
        self._run_on_all_ranks(
            lambda: store.create_partial(partial) if self._world.is_main else None
        )
        content = {"state": asdict(state), "fingerprints": fingerprints, "torch": torch.__version__}
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        if self._world.device.type != "cuda":  # or torch copies through any GPU that it sees
            writer.per_thread_copy_ahead = 0
        written = self._write(writer)
        self._pending = self._thread.submit(self._complete, written, partial, content)
        if not self._async_save:
            self.wait()

    def _write(self, writer: HuggingFaceStorageWriter) -> Future:
        """Write the tensors; in the background from a copy of them, or at once without one."""
        group: dict[str, Any] = {"process_group": self._group, "no_dist": self._group is None}
        if self._async_save:
            written = dcp.async_save(self._tensors(), storage_writer=writer, **group)
            assert isinstance(written, Future)
            return written
        self._run_on_all_ranks(lambda: dcp.save(self._tensors(), storage_writer=writer, **group))
        done: Future = Future()
        done.set_result(None)
        return done

    def _complete(self, written: Future, partial: Path, content: dict[str, Any]) -> None:
        """In the writing thread: checksums of this process's files; the main process writes the manifest."""
        written.result()
        own_files = sorted(partial.glob(f"shard-{self._world.rank + 1:05d}-*"))
        checksums = run_on_all_ranks(
            lambda: {path.name: store.file_checksum(path) for path in own_files}, self._group
        )
        files = {
            name: what
            for part in all_gather_objects(checksums, self._group)
            for name, what in part.items()
        }
        if self._world.is_main:
            store.write_manifest(self._run, partial, content, files)
            store.delete_old_checkpoints(self._run, self._keep_latest_k)

    @property
    def failed(self) -> bool:
        """Whether the checkpoint being written in the background cannot be."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            UserError: it could not be written, in whatever process.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._run_on_all_ranks(pending.result)

    def _run_on_all_ranks(self, work: Callable[[], Any]) -> None:
        """Do work in all processes; if it fails in one, all end, and that one says what the user can do."""

        def wrapped() -> None:
            try:
                work()
            except (UserError, OtherRankFailedError):
                raise
            # Disks fail in the words of whoever wrote: the system, safetensors, torch.
            except (Exception, dcp.CheckpointException) as error:
                if isinstance(error, RuntimeError) and is_of_an_exchange(error):
                    raise  # another process is gone, and no disk at fault
                cause, last = _root_cause(error), store.last_complete(self._run)
                raise UserError(f"checkpoint: could not be written ({cause}); {last}") from error

        run_on_all_ranks(wrapped)

    def load(self, path: Path) -> TrainState:
        """Take up a checkpoint that is intact (`find_intact`): model, optimizers and random numbers.

        Optimizer states that it does not have, or has in another shape, start fresh, and a warning says so.

        Returns:
            The progress.

        Raises:
            UserError: its weights have other names or shapes; or its optimizer states do not fit an
                optimizer that cannot start within a run.
        """
        reader = HuggingFaceStorageReader(str(path))
        metadata = reader.read_metadata().state_dict_metadata
        saved = {name: tensor.size for name, tensor in metadata.items()}
        run_on_all_ranks(lambda: check_weights(path, self._model, saved))
        _init_optimizer_states(self._optimizers)
        fresh = run_on_all_ranks(
            lambda: drop_unsaved_states(path, self._model, self._optimizers, saved)
        )
        if fresh and self._world.is_main:
            _warn_of_fresh_states(path, fresh)
        tensors = self._tensors()
        # This process's stream is new where fewer were saved, and that of a GPU where a CPU saved them.
        for name in [name for name in tensors if name.startswith("random/") and name not in saved]:
            tensors.pop(name)
        dcp.load(
            tensors,
            storage_reader=reader,
            process_group=self._group,
            no_dist=self._group is None,
        )
        self._restore_rng_states(tensors)
        return run_on_main(lambda: store.read_manifest(path)).state

    def _tensors(self) -> dict[str, Tensor]:
        """All that is saved, by name; a tied weight under its first."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._model.named_parameters():
            assert self._world.size == 1 or isinstance(parameter, DTensor), f"{name} is not sharded"
            tensors[f"weights/{name}"] = parameter.detach()
            for member in self._optimizers.members:
                for key, value in member.state.get(parameter, {}).items():
                    tensors[f"optimizer/{key}/{name}"] = value
        tensors[f"random/{self._rng_stream}/cpu"] = torch.get_rng_state()
        if self._world.device.type == "cuda":
            tensors[f"random/{self._rng_stream}/cuda"] = torch.cuda.get_rng_state()
        return tensors

    def _restore_rng_states(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the random states of this process that were saved."""
        cpu, cuda = (tensors.get(f"random/{self._rng_stream}/{name}") for name in ("cpu", "cuda"))
        if cpu is not None:
            torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def _root_cause(error: BaseException) -> str:
    """The first error of a chain, in one line."""
    failures = getattr(error, "failures", None)  # of torch.distributed.checkpoint: by rank
    if failures:
        error = next(iter(failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _warn_of_fresh_states(path: Path, names: Sequence[str]) -> None:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    warnings.warn(
        f"--resume: {path}: the optimizer states of {names[0]}{others} are missing, or those of another "
        "optimizer or rank; they start fresh",
        LPAWarning,
        stacklevel=3,
    )


def _init_optimizer_states(optimizers: Optimizers) -> None:
    """Make the states that optimizers make in their first step, to be filled: a step of rate zero."""
    for member in optimizers.members:
        rates = [group["lr"] for group in member.param_groups]
        for group in member.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        member.step()
        member.zero_grad(set_to_none=True)
        for group, rate in zip(member.param_groups, rates, strict=True):
            group["lr"] = rate
