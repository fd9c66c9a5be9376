"""Models small enough for a test, with weights far enough from zero that tokens differ."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
