"""The memory of what runs, by kind, when it is highest."""

from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType, _UpdateType
from transformers import PreTrainedModel

_NAMES = {
    _MemRefType.PARAM: "weights",
    _MemRefType.BUFFER: "weights",
    _MemRefType.GRAD: "gradients",
    _MemRefType.OPT: "optimizer",
    _MemRefType.ACT: "activations",
    _MemRefType.TEMP: "temporary",
    _MemRefType.OTH: "temporary",
}


class StepMemory(MemTracker):
    """torch's tracker of memory for a step of several forward passes.

    torch's own takes a picture of every module at every hook, which a step of many layers need not wait
    for; this one keeps the highest point of each phase.

    Args:
        model, optimizers: what is there before the step.
        counted: the kinds whose sum is to be highest; by default all.

    Attributes:
        phase: the phase that is tracked now.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        *,
        counted: Collection[_MemRefType] = tuple(_MemRefType),
    ) -> None:
        super().__init__()
        self._model = model
        self._counted = counted
        self.track_external(model, *optimizers)
        self._own_weights = self._now(_MemRefType.PARAM) + self._now(_MemRefType.BUFFER)
        self._states = self._now(_MemRefType.OPT)
        self._peaks: dict[str, tuple[int, dict[Any, int]]] = {}
        self.phase = "forward_backward"

    def _now(self, kind: _MemRefType) -> int:
        return sum(snapshot[kind] for snapshot in self._curr_mem_snap.values())

    def watch_gradients(self) -> None:
        """Tell gradients from what is temporary as soon as they are made; without FSDP only."""
        self._track_module_params_and_buffers(self._model, install_grad_hooks=True)

    def settle_gradients(self) -> None:
        """Take what a backward pass has left for gradients: nothing else of it stays."""
        for winfo, reference in list(self._WINFO.values()):
            if winfo.reftype is _MemRefType.TEMP and reference() is not None:
                winfo.reftype = _MemRefType.GRAD
                self._update_snap(_UpdateType.REF, winfo, old_reftype=_MemRefType.TEMP)

    def peak(self, phase: str) -> dict[str, int]:
        """Bytes by kind at the highest point of a phase.

        The kinds: `weights`, this process's; `gathered`, those of others that are here for now;
        `gradients`, `optimizer`, `activations`, and what is `temporary`.
        """
        found = dict.fromkeys(
            ("weights", "gathered", "gradients", "optimizer", "activations", "temporary"), 0
        )
        for kind, size in self._peaks[phase][1].items():
            if kind in _NAMES:
                found[_NAMES[kind]] += size
        # A shard may be freed for a moment while what is gathered of it is in use.
        found["gathered"] = max(0, found["weights"] - self._own_weights)
        found["weights"] -= found["gathered"]
        # What a step of an optimizer makes is counted with its states until it ends.
        found["temporary"] += found["optimizer"] - self._states
        found["optimizer"] = self._states
        return found

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        # The loss reads the weight of the head without a call of the module.
        head = self._model.get_output_embeddings()
        for parameter in chain(module.parameters(recurse=False), head.parameters()):
            self._update_and_maybe_create_winfos(parameter, _MemRefType.PARAM)

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        pass

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None:
        pass

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None:
        pass

    def _update_peak_stats(self, peak_state: Any) -> None:
        for snapshot in self._curr_mem_snap.values():
            size = sum(snapshot[kind] for kind in self._counted)
            if self._peaks.get(self.phase, (-1, {}))[0] < size:
                self._peaks[self.phase] = size, dict(snapshot)
