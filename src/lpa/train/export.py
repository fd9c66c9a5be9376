"""A model in training as a Hugging Face directory."""

import shutil
from pathlib import Path

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from lpa.data.manifest import TOKENIZER_DIRECTORY
from lpa.files import new_directory
from lpa.model.configuration_lpa import LPAConfig
from lpa.train.distributed import World, together
from lpa.train.materialise import meta_model


def export_model(model: nn.Module, config: LPAConfig, data: Path, out: Path, world: World) -> None:
    """Write model and tokenizer to `out`, in place of what is there; every process takes part.

    The shards are put together in the memory of the main process.
    """
    whole = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=world.size > 1)
    )

    def write() -> None:
        plain = meta_model(config)
        plain.load_state_dict(whole, assign=True)
        plain.tie_weights()
        plain.generation_config.eos_token_id = config.eos_token_id
        plain.generation_config.pad_token_id = config.eos_token_id
        with new_directory(out, overwrite=True) as directory:
            plain.save_pretrained(directory)
            shutil.copytree(data / TOKENIZER_DIRECTORY, directory, dirs_exist_ok=True)

    together(lambda: write() if world.is_main else None)
