"""Learning from what another model, mostly the dense parent, says of each next token."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lpa.data.dataset import IGNORE
from lpa.data.manifest import Manifest
from lpa.errors import UserError
from lpa.model.loading import load_model, open_causal_config
from lpa.model.weights import open_weights
from lpa.train.config import DistillConfig, RunConfig
from lpa.train.parallel import Layout
from lpa.train.starting import check_same_tokens

# Tokens whose logits, the student's and the teacher's, are held at a time.
_CHUNK = 256


class Distiller:
    """The loss of a student beside its teacher: (1 - w) · CE + w · T² · KL(teacher ‖ student).

    CE is the cross entropy of the targets. KL is between the next-token distributions of both, their
    logits divided by the temperature T; its factor T² keeps the size of its gradient whatever T is (Hinton
    et al. 2015, section 2.1). Both are sums over the tokens that have a target, divided by the tokens of
    the whole step. The logits are made for 256 tokens at a time, and once more in the backward pass.

    Every process holds the whole teacher, in the precision of the arithmetic and without gradients.

    Raises:
        UserError: the teacher cannot be loaded or does not fit the data, or tensors are split.
    """

    def __init__(
        self,
        config: DistillConfig,
        data: Path,
        *,
        layout: Layout,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert config.teacher is not None
        if layout.tensor > 1:
            raise UserError(
                f"distill.teacher: got parallel.tensor {layout.tensor}; expected 1, as logits are "
                "compared whole"
            )
        self.weight = config.weight
        self.temperature = config.temperature
        directory = _existing(config.teacher)
        check_same_tokens("distill.teacher", directory, data)
        self.teacher: Any = load_model(directory, field="distill.teacher", dtype=dtype)
        self.teacher.requires_grad_(False).to(device)
        self.identity = {"distill.weights": open_weights(directory, "distill.teacher").sha256()}
        self._vocabulary = Manifest.load(data).vocab_size
        rows = self.teacher.get_output_embeddings().weight.shape[0]
        if rows < self._vocabulary:
            raise UserError(
                f"distill.teacher {config.teacher}: has {rows} tokens and the data {self._vocabulary}; "
                "expected a teacher with the tokenizer of the data"
            )
        self._head_alone = self._logits_are_the_heads(device)
        self._divergence: Tensor | float = 0.0

    @classmethod
    def of(
        cls, config: RunConfig, layout: Layout, device: torch.device, dtype: torch.dtype
    ) -> "Distiller | None":
        """That of a run, if it has a teacher."""
        if config.distill.teacher is None:
            return None
        return cls(config.distill, config.data.path, layout=layout, device=device, dtype=dtype)

    def take(self) -> float:
        """What the divergence, times T², has added to the loss since the last call, before its weight."""
        divergence, self._divergence = self._divergence, 0.0
        return float(divergence)

    def loss(self, student: nn.Module, inputs: dict[str, Tensor], items: int) -> Tensor:
        """The loss of a micro-batch, divided by the `items` tokens of its step, whose parts so add up."""
        taught = self._teach(inputs)
        return student(
            **inputs,
            num_items_in_batch=items,
            use_cache=False,
            loss_from_hidden=partial(self._compare, taught),
        ).loss

    @torch.no_grad()
    def _teach(self, inputs: dict[str, Tensor]) -> Tensor:
        """(tokens, width) or, where the head alone does not make the logits, (tokens, vocabulary)."""
        inputs = {name: value for name, value in inputs.items() if name != "shift_labels"}
        if self._head_alone:
            output = self.teacher.base_model(**inputs, use_cache=False).last_hidden_state
        else:
            output = self.teacher(**inputs, use_cache=False).logits
        return output.flatten(0, 1)

    def _compare(
        self, taught: Tensor, hidden: Tensor, head: nn.Module, targets: Tensor, items: Tensor | int
    ) -> Tensor:
        """hidden: (batch, sequence, width) of the student, targets: the same without width -> the loss."""
        hidden, targets = hidden.flatten(0, 1), targets.flatten()
        total = hidden.new_zeros((), dtype=torch.float32)
        for part in torch.arange(len(targets), device=targets.device).split(_CHUNK):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            likelihood, divergence = checkpoint(
                self._sums, hidden[rows], head, taught[rows], targets[rows], use_reentrant=False
            )
            total = total + (1 - self.weight) * likelihood + self.weight * divergence
            self._divergence = self._divergence + divergence.detach() / items
        return total / items

    def _sums(
        self, hidden: Tensor, head: nn.Module, taught: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over tokens of the cross entropy and of T² times the divergence."""
        logits = head(hidden).float()
        likelihood = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        with torch.no_grad():
            wanted = self.teacher.get_output_embeddings()(taught) if self._head_alone else taught
            # Rows beyond the tokenizer's, which some models have, stand for no token.
            wanted = self._log_probabilities(wanted)
        divergence = F.kl_div(
            self._log_probabilities(logits), wanted, reduction="none", log_target=True
        ).sum(-1)
        counted = (targets != IGNORE).to(divergence)
        return likelihood, self.temperature**2 * (divergence * counted).sum()

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits[:, : self._vocabulary].float() / self.temperature, dim=-1)

    @torch.no_grad()
    def _logits_are_the_heads(self, device: torch.device) -> bool:
        """Whether nothing is done to the output of the head: some models scale or bound it."""
        ids = torch.arange(min(8, self._vocabulary), device=device)[None]
        hidden = self.teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state
        plain = self.teacher.get_output_embeddings()(hidden)
        return torch.equal(plain, self.teacher(input_ids=ids, use_cache=False).logits)


def plain_loss(model: nn.Module, inputs: dict[str, Tensor], items: int) -> Tensor:
    """The cross entropy of a micro-batch alone, as `Distiller.loss`."""
    return model(**inputs, num_items_in_batch=items, use_cache=False).loss


def teacher_bytes(directory: Path, dtype: torch.dtype) -> int:
    """The memory that a teacher's weights take.

    Raises:
        UserError: it is no directory of a causal language model.
    """
    field = "distill.teacher"
    open_causal_config(_existing(directory), field)
    return open_weights(directory, field).elements * dtype.itemsize


def _existing(directory: Path) -> Path:
    if not directory.is_dir():
        raise UserError(
            f"distill.teacher {directory}: no such directory; expected a causal language model of "
            "transformers, written by save_pretrained"
        )
    return directory
