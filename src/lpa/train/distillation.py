"""Learning from what another model, mostly the dense parent, says of each next token."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from lpa.data.dataset import IGNORE_INDEX
from lpa.data.manifest import Manifest
from lpa.errors import UserError
from lpa.gguf_import import is_gguf, load_gguf, read_gguf_header
from lpa.model.layers.mask import causal_mask
from lpa.model.loading import load_model, model_directory, open_causal_config, positions_of
from lpa.model.weight_checks import as_user_error
from lpa.model.weights import open_weights
from lpa.storage.files import file_sha256
from lpa.train.config import DistillConfig, RunConfig
from lpa.train.distributed.parallelize import ParallelLayout
from lpa.train.init_weights import check_same_tokenizer, check_same_vocabulary

# Tokens whose logits, the student's and the teacher's, are held at a time.
_CHUNK = 256
_FIELD = "distill.teacher"
# Tokens of each of the two documents that tell whether a teacher keeps them apart, and how much what it
# predicts of one may change with the other, relatively: kernels may round otherwise.
_PROBED = 8
_TOLERANCE = 1e-3


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
        manifest: Manifest,
        *,
        layout: ParallelLayout,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert config.teacher is not None
        _check_whole_logits(layout.tensor)
        self.weight = config.weight
        self.temperature = config.temperature
        self.teacher, sha256 = _open_teacher(config.teacher, data, dtype)
        self.teacher.requires_grad_(False).to(device)
        self.fingerprints = {"distill.weights": sha256}
        self._vocab_size = manifest.vocab_size
        rows = self.teacher.get_output_embeddings().out_features
        if rows < self._vocab_size:
            raise UserError(
                f"distill.teacher {config.teacher}: has {rows} tokens and the data {self._vocab_size}; "
                "expected a teacher with the tokenizer of the data"
            )
        self._has_plain_head = self._check_plain_head(device)
        self._attends_to_all = _attends_to_all(self.teacher.config)
        self._divergence: Tensor | None = None

    @classmethod
    def from_run_config(
        cls,
        config: RunConfig,
        manifest: Manifest,
        layout: ParallelLayout,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "Distiller | None":
        """The distiller of a run, None without a teacher; `manifest` is that of the data."""
        if config.distill.teacher is None:
            return None
        distiller = cls(
            config.distill, config.data.path, manifest, layout=layout, device=device, dtype=dtype
        )
        _check_positions(positions_of(distiller.teacher.config), config)
        if config.data.intra_document_mask:
            distiller.check_documents_apart(device)
        return distiller

    def pop_divergence(self) -> Tensor | None:
        """What the divergence, times T², has added to the loss since the last call, before its weight.

        Returns:
            (), on the device; None where nothing was added.
        """
        divergence, self._divergence = self._divergence, None
        return divergence

    def loss(self, student: nn.Module, inputs: dict[str, Tensor], num_items: int) -> Tensor:
        """The loss of a micro-batch, divided by the `num_items` tokens of its step, whose parts so add up."""
        teacher_outputs = self._teacher_outputs(inputs)
        return student(
            **inputs,
            num_items_in_batch=num_items,
            use_cache=False,
            return_logits=False,
            loss_from_hidden=partial(self._distillation_loss, teacher_outputs),
        ).loss

    @torch.no_grad()
    def _teacher_outputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """(tokens, width) or, where the head alone does not make the logits, (tokens, vocabulary)."""
        given: dict[str, Any] = {n: value for n, value in inputs.items() if n != "shift_labels"}
        if self._attends_to_all:
            given |= self._without_question(inputs)
        if self._has_plain_head:
            output = self.teacher.base_model(**given, use_cache=False).last_hidden_state
        else:
            output = self.teacher(**given, use_cache=False).logits
        return output.flatten(0, 1)

    def _without_question(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What keeps transformers from asking the device whether a sample holds several documents.

        It asks only without a mask and without a cache.
        """
        positions = inputs.get("position_ids")
        if positions is None:
            return {"past_key_values": _NothingKept()}
        like = positions.new_empty((*positions.shape, 1), dtype=self.teacher.dtype)
        return {"attention_mask": causal_mask(self.teacher.config, like, None, None, positions)}

    def _distillation_loss(
        self,
        teacher_outputs: Tensor,
        hidden: Tensor,
        head: nn.Module,
        targets: Tensor,
        num_items: Tensor | int,
    ) -> Tensor:
        """hidden: (batch, sequence, width) of the student, targets: the same without width -> the loss."""
        hidden, targets = hidden.flatten(0, 1), targets.flatten()
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), _CHUNK):
            rows = slice(start, start + _CHUNK)
            nll, divergence = checkpoint(
                self._sums,
                hidden[rows],
                head,
                teacher_outputs[rows],
                targets[rows],
                use_reentrant=False,
            )
            total = total + (1 - self.weight) * nll + self.weight * divergence
            added = divergence.detach() / num_items
            self._divergence = added if self._divergence is None else self._divergence + added
        return total / num_items

    def _sums(
        self, hidden: Tensor, head: nn.Module, teacher_outputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over tokens of the cross entropy and of T² times the divergence."""
        logits = head(hidden).float()
        nll = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        with torch.no_grad():
            teacher_log_probs = (
                self.teacher.get_output_embeddings()(teacher_outputs)
                if self._has_plain_head
                else teacher_outputs
            )
            # Rows beyond the tokenizer's, which some models have, stand for no token.
            teacher_log_probs = self._log_probabilities(teacher_log_probs)
        divergence = F.kl_div(
            self._log_probabilities(logits), teacher_log_probs, reduction="none", log_target=True
        ).sum(-1)
        mask = (targets != IGNORE_INDEX).to(divergence)
        return nll, self.temperature**2 * (divergence * mask).sum()

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits[:, : self._vocab_size].float() / self.temperature, dim=-1)

    @torch.no_grad()
    def _check_plain_head(self, device: torch.device) -> bool:
        """Whether nothing is done to the output of the head: some models scale or bound it."""
        ids = torch.arange(min(8, self._vocab_size), device=device)[None]
        hidden = self.teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state
        plain = self.teacher.get_output_embeddings()(hidden)
        return torch.equal(plain, self.teacher(input_ids=ids, use_cache=False).logits)

    @torch.no_grad()
    def check_documents_apart(self, device: torch.device) -> None:
        """Refuse a teacher that takes a document for the continuation of the one before it.

        Raises:
            UserError: such as one with a state, or one that takes no positions.
        """
        later = torch.arange(_PROBED, device=device) % self._vocab_size
        positions = torch.arange(_PROBED, device=device).repeat(2)[None]
        outputs = []
        for token in (0, 1):
            ids = torch.cat([torch.full_like(later, token), later])[None]
            with as_user_error(
                f"{_FIELD} with data.intra_document_mask: takes no positions of documents"
            ):
                found = self._teacher_outputs({"input_ids": ids, "position_ids": positions})
            outputs.append(found[_PROBED:].float())
        one, other = outputs
        if (one - other).norm() > _TOLERANCE * one.norm():
            raise UserError(
                f"{_FIELD} with data.intra_document_mask: what it predicts of a document depends on the one "
                "before it in the sample; expected a teacher that keeps them apart by their positions, or "
                "data.intra_document_mask false"
            )


class _NothingKept(Cache):
    """A cache that stays empty."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0


def _attends_to_all(config: PreTrainedConfig) -> bool:
    """Whether each layer attends to all tokens before: not to a window, nor by a state."""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return layers == {"full_attention"} and getattr(config, "sliding_window", None) is None


def cross_entropy_loss(model: nn.Module, inputs: dict[str, Tensor], num_items: int) -> Tensor:
    """The cross entropy of a micro-batch alone, as `Distiller.loss`."""
    return model(**inputs, num_items_in_batch=num_items, use_cache=False, return_logits=False).loss


def _open_teacher(path: Path, data: Path, dtype: torch.dtype) -> tuple[Any, str]:
    """The model of a run, of a Hugging Face directory or of a GGUF file, and the SHA-256 of its weights."""
    if is_gguf(path):
        model, tokenizer = load_gguf(path, _FIELD)
        tokens = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
        check_same_vocabulary(_FIELD, path, tokens, data)
        for weight in model.parameters():  # the frequencies of RoPE stay float32, as when loaded
            weight.data = weight.data.to(dtype)
        return model, file_sha256(path)
    directory = model_directory(path, _FIELD)
    check_same_tokenizer(_FIELD, directory, data)
    model = load_model(directory, field=_FIELD, dtype=dtype)
    return model, open_weights(directory, _FIELD).sha256()


def plan_teacher(config: RunConfig, dtype: torch.dtype) -> int:
    """The bytes that the weights of a run's teacher take, without reading them.

    Raises:
        UserError: there is no causal language model, the samples have more tokens than it has positions, or
            tensors are split.
    """
    path = config.distill.teacher
    assert path is not None
    _check_whole_logits(config.parallel.tensor)
    if is_gguf(path):
        header = read_gguf_header(path, _FIELD)
        elements, positions = header.elements, header.positions
    else:
        directory = model_directory(path, _FIELD)
        positions = positions_of(open_causal_config(directory, _FIELD))
        elements = open_weights(directory, _FIELD).elements
    _check_positions(positions, config)
    return elements * dtype.itemsize


def _check_whole_logits(tensor: int) -> None:
    if tensor > 1:
        raise UserError(
            f"distill.teacher: got parallel.tensor {tensor}; expected 1, as logits are compared whole"
        )


def _check_positions(positions: int | None, config: RunConfig) -> None:
    if positions is not None and config.data.seq_len > positions:
        raise UserError(
            f"data.seq_len: got {config.data.seq_len}; expected at most the {positions} positions of "
            f"distill.teacher {config.distill.teacher}"
        )
