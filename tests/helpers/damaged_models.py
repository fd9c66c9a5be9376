"""Every way in which the directory of a model may be damaged, or try to have code run."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MARK = "EXECUTED"


def _config(**fields: object) -> Callable[[Path], None]:
    """Changes of config.json; a value of `...` takes the key out."""
    return lambda directory: edit_json(directory / "config.json", fields)


def edit_json(path: Path, fields: dict) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def _content(name: str, content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data) and None


def _weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})

    return damage


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return damage


def _index(content: object) -> Callable[[Path], None]:
    """An index in the place of the one file; a dictionary is its `weight_map`."""

    def damage(directory: Path) -> None:
        (directory / WEIGHTS).rename(directory / "model-00001-of-00001.safetensors")
        whole = {"metadata": {}, "weight_map": content} if isinstance(content, dict) else content
        text = whole if isinstance(whole, str) else json.dumps(whole)
        (directory / INDEX).write_text(text)

    return damage


def foreign_code(directory: Path) -> None:
    """Modules that leave a mark when they are imported."""
    for name in ("configuration_evil", "modeling_evil", "custom_generate/generate"):
        path = directory / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(directory / MARK)!r}, 'w').close()\n")


def _unknown_class(directory: Path) -> None:
    foreign_code(directory)
    code = {
        "AutoConfig": "configuration_evil.Config",
        "AutoModelForCausalLM": "modeling_evil.Model",
        "AutoModelForSequenceClassification": "modeling_evil.Model",
    }
    _config(model_type="evil", auto_map=code)(directory)


class _Leaves:
    """What opens a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.open, (self.path, os.O_CREAT)


def _pickle_instead(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / WEIGHTS).unlink()
        (directory / name).write_bytes(pickle.dumps(_Leaves(directory / MARK)))

    return damage


def _directory_instead(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()


def _adapter(directory: Path) -> None:
    elsewhere = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere"}
    (directory / "adapter_config.json").write_text(json.dumps(elsewhere))


Q = "model.layers.0.self_attn.q_proj.down.weight"
NORM = "model.norm.weight"

# What is done to a directory, and what the one line says of it. All of it shows in config.json alone.
CONFIGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "null": (_content("config.json", "null"), "config.json"),
    "a list": (_content("config.json", "[]"), "config.json"),
    "empty": (_content("config.json", ""), "config.json"),
    "not UTF-8": (_content("config.json", b'{"model_type": "\xff"}'), "config.json"),
    "half": (_content("config.json", '{"model_type": "lpa", '), "config.json"),
    "deeply nested": (_content("config.json", '{"a":' * 100_000), "config.json"),
    "text for a number": (_config(hidden_size="wide"), "config.json.*hidden_size"),
    "a number for text": (_config(decoder_type=7), "config.json.*decoder_type"),
    "null for a number": (_config(num_hidden_layers=None), "config.json.*num_hidden_layers"),
    "a width below one": (_config(hidden_size=-32), "config.json.*hidden_size"),
    "no heads": (_config(num_attention_heads=0), "config.json.*num_attention_heads"),
    "no key heads": (_config(num_key_value_heads=0), "config.json.*num_key_value_heads"),
    "no model type": (_config(model_type=...), "config.json.*model_type"),
    "a list as model type": (_config(model_type=["lpa"]), "config.json.*model_type"),
    "an unknown model type": (_config(model_type="evil"), "config.json.*model_type.*evil"),
    "absurdly deep": (_config(num_hidden_layers=10**12), "config.json.*num_hidden_layers"),
    "too deep": (_config(num_hidden_layers=60_000), "config.json.*num_hidden_layers"),
    "beyond 64 bits": (_config(vocab_size=10**30), "config.json.*vocab_size"),
    "custom code": (_unknown_class, "config.json.*(auto_map|evil)"),
    "another file of configuration": (
        _config(configuration_files=["config.4.0.0.json"]),
        "config.json.*configuration_files",
    ),
}

# What shows in the headers of the weights.
WEIGHT_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda d: (d / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "an adapter": (_adapter, "adapter_config.json"),
    "a pickle instead": (_pickle_instead("pytorch_model.bin"), "pytorch_model.bin.*pickle"),
    "sharded pickles instead": (
        _pickle_instead("pytorch_model.bin.index.json"),
        "pytorch_model.bin.*pickle",
    ),
    "a distributed checkpoint": (
        lambda d: (d / WEIGHTS).rename(d / "shard-00000-model-00001-of-00001.safetensors"),
        "shard-00000-model-00001-of-00001.safetensors",
    ),
    "empty weights": (_bytes(lambda b: b""), WEIGHTS),
    "truncated weights": (_bytes(lambda b: b[:-100]), WEIGHTS),
    "a truncated header": (_bytes(lambda b: b[:40]), WEIGHTS),
    "a garbage header": (_bytes(lambda b: b[:8] + b"\xff" * 50 + b[58:]), WEIGHTS),
    "a huge header": (_bytes(lambda b: b"\xff" * 8 + b[8:]), WEIGHTS),
    "a directory as weights": (_directory_instead, WEIGHTS),
    "an index of null": (_index("null"), INDEX),
    "an index of a list": (_index("[]"), INDEX),
    "an index that is empty": (_index(""), INDEX),
    "an index without a map": (_index('{"metadata": {}}'), f"{INDEX}.*weight_map"),
    "an index with an empty map": (_index({}), f"{INDEX}.*weight_map"),
    "an index of a list as map": (_index('{"weight_map": []}'), f"{INDEX}.*weight_map"),
    "an index of numbers": (_index({Q: 7}), f"{INDEX}.*7"),
    "an index of absent files": (_index({Q: "gone.safetensors"}), "has no gone.safetensors"),
    "an index that leads outside": (_index({Q: "../final/other.safetensors"}), f"{INDEX}.*other"),
    "an index of an absolute path": (_index({Q: "/etc/passwd"}), f"{INDEX}.*/etc/passwd"),
    "an index of pickles": (_index({Q: "pytorch_model.bin"}), f"{INDEX}.*pytorch_model.bin"),
    "an index of other tensors": (
        _index({"absent": "model-00001-of-00001.safetensors"}),
        f"{INDEX}.*absent",
    ),
}

# What shows when configuration and weights meet.
MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "absurdly wide": (_config(hidden_size=2**30), "config.json"),
    "wide": (_config(hidden_size=2**16, head_dim=16), "config.json"),
    "a vocabulary that is too large": (_config(vocab_size=2**31 - 1), "config.json"),
    "shallower than its weights": (_config(num_hidden_layers=1), "layers.1."),
    "deeper than its weights": (_config(num_hidden_layers=3), "layers.2."),
    "denser than its weights": (_config(placement="none"), "k_proj"),
    "a rank that its weights have not": (_config(rank=4), "q_proj|k_proj|v_proj|o_proj"),
    "weights named by the configuration": (
        _config(transformers_weights="../other.safetensors"),
        "config.json.*transformers_weights",
    ),
    "attention from the hub": (
        _config(attn_implementation="someone/kernel"),
        "config.json.*attn_implementation",
    ),
    "a missing tensor": (_weights(lambda t: t.pop(Q)), f"{WEIGHTS}.*{Q}"),
    "a missing norm": (_weights(lambda t: t.pop(NORM)), f"{WEIGHTS}.*{NORM}"),
    "another shape": (_weights(lambda t: t.update({Q: t[Q][:-1]})), f"{WEIGHTS}.*{Q}"),
    "another rank of shape": (
        _weights(lambda t: t.update({NORM: t[NORM][None].contiguous()})),
        f"{WEIGHTS}.*{NORM}",
    ),
    "one tensor more": (
        _weights(lambda t: t.update({Q.replace("weight", "bias"): torch.zeros(8)})),
        f"{WEIGHTS}.*{Q.replace('weight', 'bias')}",
    ),
    "whole numbers": (_weights(lambda t: t.update({Q: t[Q].to(torch.int32)})), f"{WEIGHTS}.*{Q}"),
    "one byte each": (
        _weights(lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})),
        f"{WEIGHTS}.*{Q}",
    ),
    "a generation configuration of null": (
        _content("generation_config.json", "null"),
        "generation_config.json",
    ),
    "a generation configuration cut short": (
        _content("generation_config.json", '{"eos_token_id": 0'),
        "generation_config.json",
    ),
    "a generation configuration of text": (
        _content("generation_config.json", '{"temperature": "hot"}'),
        "generation_config.json",
    ),
}
