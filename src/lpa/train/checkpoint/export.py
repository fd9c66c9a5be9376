"""A model in training as a Hugging Face directory."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import GenerationConfig

from lpa.data.manifest import TOKENIZER_DIRECTORY, Manifest
from lpa.data.tokenizer import copy_tokenizer, verify_tokenizer
from lpa.errors import LPAWarning, UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.hub.model_card import CardContent
from lpa.model.hub.model_directory import save_model
from lpa.storage.files import write_json
from lpa.storage.outputs import MODEL, atomic_directory
from lpa.storage.run_directory import BEST_EVALUATION_FILE
from lpa.train.checkpoint import store
from lpa.train.checkpoint.best_model import BestEvaluation
from lpa.train.distributed.meta_init import build_meta_model
from lpa.train.distributed.process_group import World, run_on_main


def export_model(
    model: nn.Module,
    config: LPAConfig,
    data: Path,
    manifest: Manifest,
    out: Path,
    world: World,
    card: CardContent,
    *,
    generation: Mapping[str, Any],
    best: BestEvaluation | None = None,
) -> bool:
    """Write model and tokenizer to `out`, in place of what is there; every process takes part.

    The shards are put together in the memory of the main process.

    Args:
        data, manifest: the directory that has the tokenizer, and its manifest as it was when the run started.
        card: what the model's card says, but for its title, the name of the run.
        generation: fields of the generation configuration of the model that the run started from, empty
            where there is none.
        best: of the model in `best/`, and written beside it. The run can do without that model, so it is a
            warning if it cannot be written.

    Returns:
        Whether they were written, the same in every process.

    Raises:
        UserError: they cannot be written.
    """
    state_dict = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=world.size > 1)
    )

    def try_to_write() -> bool:
        try:
            write()
            return True
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            said = f"{out}: the model could not be written ({reason})"
            if best is None:
                raise UserError(
                    f"{said}; {store.last_complete(out.parent)}, so --resume"
                ) from error
            warnings.warn(said, LPAWarning, stacklevel=2)
            return False

    def write() -> None:
        verify_tokenizer(data, manifest)
        plain = build_meta_model(config)
        plain.load_state_dict(state_dict, assign=True)
        plain.tie_weights()
        plain.generation_config = _generation_config(config, generation)
        with atomic_directory(out, MODEL, overwrite=True) as directory:
            save_model(plain, directory, replace(card, title=out.resolve().parent.name))
            copy_tokenizer(data / TOKENIZER_DIRECTORY, directory, config.max_position_embeddings)
            if best is not None:
                write_json(directory / BEST_EVALUATION_FILE, asdict(best))

    return run_on_main(try_to_write)


def _generation_config(config: LPAConfig, generation: Mapping[str, Any]) -> GenerationConfig:
    """How the trained model generates: as the one that it started from, and padding with its first end."""
    limits = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    built = GenerationConfig.from_dict({**limits, **generation})
    if built.pad_token_id is None:
        ends = built.eos_token_id
        built.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return built
