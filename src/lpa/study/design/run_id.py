"""What a run is called: a hash of its model, its settings and its data."""

import hashlib
import json
from inspect import get_annotations
from pathlib import Path
from typing import Any

from lpa.data.manifest import Manifest
from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.study.design.run_configs import build_model_config
from lpa.train.config import RunConfig

# Where data is and how it is read does not make a run another one.
_NOT_IN_RUN_ID = ("path", "verify")
_NUM_WORKERS = 0  # of all names, as the first ones have it

# What the model's own fields repeat: the ranks, and the setting of the data.
_SAID_ELSEWHERE = ("placement", "rank", "ffn_rank", "dense_layers", "intra_document_mask")

# What transformers adds to a configuration when it is written. No setting of a run changes it, but its
# versions do, so names are made with the values of the version that made the first ones.
_OF_TRANSFORMERS = {
    "_name_or_path": "",
    "chunk_size_feed_forward": 0,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "model_type": "lpa",
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}


def data_hashes(manifest: Manifest, data: Path) -> dict[str, Any]:
    """Hashes of tokens and tokenizer: the same data in another directory are the same.

    Raises:
        UserError: none held out to score runs on.
    """
    if not {"validation", "test"} & manifest.splits.keys():
        raise UserError(
            f"--data {data}: has only a train split; expected a validation or test split"
        )
    tokens = {name: [s.sha256 for s in split.shards] for name, split in manifest.splits.items()}
    return {"tokenizer": manifest.tokenizer_sha256, **tokens}


def run_id(config: RunConfig, data: dict[str, Any], vocab_size: int) -> str:
    """The name of a run's directory: of its model, its settings and its data, not of the code's version."""
    settings = config.to_dict()
    settings["model"] = _model_fields(build_model_config(config, vocab_size))
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in _NOT_IN_RUN_ID}
    settings["data"]["num_workers"] = _NUM_WORKERS
    # null is the default of a field, so that a new field leaves the names of old runs alone.
    identifying = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in settings.items()
        if section not in ("checkpoint", "parallel")
    }
    text = json.dumps([identifying, data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _model_fields(model: LPAConfig) -> dict[str, Any]:
    """What was said in other words is the same model; how pairs start says nothing where there are none."""
    ranks = {
        name: [model.projection_rank(name, layer) for layer in range(model.num_hidden_layers)]
        for name in model.projections
    }
    written = model.to_dict()
    own = {
        name: written[name] for name in get_annotations(LPAConfig) if name not in _SAID_ELSEWHERE
    }
    if not any(rank for of_layers in ranks.values() for rank in of_layers):
        own.pop("initialization")
    return _OF_TRANSFORMERS | own | {"ranks": ranks}
