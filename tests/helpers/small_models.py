"""Models small enough for a test, with weights far enough from zero that tokens differ."""

import shutil
from pathlib import Path

import torch
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from lpa.model import LPAConfig, LPAForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rank": 8,
    "initializer_range": 0.3,
}


def small_config(**fields) -> LPAConfig:
    return LPAConfig(**(SIZES | fields))


def small_model(**fields) -> LPAForCausalLM:
    """The same weights every time, in evaluation mode."""
    torch.manual_seed(0)
    return LPAForCausalLM(small_config(**fields)).eval()


def small_llama(vocab_size: int = 97, **fields) -> LlamaForCausalLM:
    """A stock Llama, likewise."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(sizes | fields))).eval()


def save_small_bloom(run: Path, out: Path) -> Path:
    """A model whose configuration names no positions, with the tokenizer of a run."""
    shutil.copytree(run / "final", out)
    torch.manual_seed(0)
    BloomForCausalLM(
        BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    ).save_pretrained(out)
    return out
