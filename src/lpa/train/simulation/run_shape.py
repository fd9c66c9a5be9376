"""What a run would be, from its configuration alone: no data, no weights, no other process."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lpa.data.manifest import MANIFEST_FILE, Manifest
from lpa.data.tokenizer import verify_tokenizer
from lpa.device import planned_device_type, resolve_dtype
from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.presets import PRESETS
from lpa.train.config import RunConfig
from lpa.train.distributed.meta_init import build_meta_model
from lpa.train.distributed.parallelize import ParallelLayout, resolve_layout
from lpa.train.init_weights import (
    check_source_sizes,
    freeze_all_but_factors,
    load_source_config,
)


@dataclass
class RunShape:
    """The sizes of a run.

    Attributes:
        processes, layout: how many, and how they divide the work.
        model_config: the architecture.
        dtype: of the arithmetic.
        seq_len: tokens per sample.
        micro_batch_size: samples per forward pass of one process.
        forward_passes: per step and process.
        gradient_syncs: how often per step gradients are added up over processes.
    """

    processes: int
    layout: ParallelLayout
    model_config: LPAConfig
    dtype: torch.dtype
    seq_len: int
    micro_batch_size: int
    forward_passes: int
    gradient_syncs: int

    @classmethod
    def of(cls, config: RunConfig, processes: int | None = None) -> "RunShape":
        """The shape of a run over so many processes, by default those of its parallel section.

        Raises:
            UserError: a field that the run would refuse.
        """
        asked = config.parallel
        if processes is None:
            processes = asked.replicate * (asked.shard or 1) * asked.tensor
        if processes < 1:
            raise UserError(f"--processes: got {processes}; expected at least 1")
        layout = resolve_layout(asked, processes)
        manifest = _load_manifest(config.data.path)
        settings, seq_len = config.train, config.data.seq_len
        micro_batch_size = settings.resolve_micro_batch_size(layout.data_parallel_size)
        if config.model.from_ is None:
            vocab_size = _vocab_size(config, manifest)
            model_config = config.model.build(vocab_size=vocab_size, seq_len=seq_len)
        else:
            model_config = load_source_config(config.model.from_)
            check_source_sizes(model_config, config, manifest)
        if config.model.attn_implementation == "eager":  # fused kernels keep what SDPA's keeps
            model_config._attn_implementation = "eager"
        passes = settings.batch_size // (layout.data_parallel_size * micro_batch_size)
        return cls(
            processes=processes,
            layout=layout,
            model_config=model_config,
            dtype=resolve_dtype(settings.dtype, planned_device_type(settings.device)),
            seq_len=seq_len,
            micro_batch_size=micro_batch_size,
            forward_passes=passes,
            gradient_syncs=passes if asked.sync_each_batch else 1,
        )

    def build_meta_model(self, config: RunConfig) -> LPAForCausalLM:
        """The whole model, without memory."""
        model = build_meta_model(self.model_config).train()
        if config.optim.trainable == "factors":
            freeze_all_but_factors(model)
        return model


def _load_manifest(data: Path) -> Manifest | None:
    """Manifest of the data, its tokenizer verified; None before the data is prepared."""
    if not (data / MANIFEST_FILE).is_file():
        return None
    manifest = Manifest.load(data)
    verify_tokenizer(data, manifest)
    return manifest


def _vocab_size(config: RunConfig, manifest: Manifest | None) -> int:
    """Vocabulary size of the data where it is prepared, else of the model."""
    if manifest is not None:
        return manifest.vocab_size
    of_preset = PRESETS[config.model.preset].fields if config.model.preset in PRESETS else {}
    return config.model.vocab_size or of_preset.get("vocab_size", 32000)
