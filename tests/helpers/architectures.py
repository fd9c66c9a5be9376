"""A tiny model, randomly initialized, of each architecture that can be factorized."""

import torch
import transformers as hf

_COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.15,
}
_GEMMA = {**_COMMON, "head_dim": 8}
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**_COMMON),
    "qwen2": lambda: hf.Qwen2Config(**_COMMON),
    "qwen3": lambda: hf.Qwen3Config(**_COMMON, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**_COMMON, sliding_window=None),
    "mistral_sliding": lambda: hf.MistralConfig(**_COMMON, sliding_window=8),
    "gemma": lambda: hf.GemmaConfig(**_GEMMA),
    "gemma2": lambda: hf.Gemma2Config(**_GEMMA, sliding_window=8),
    "gemma3_text": lambda: hf.Gemma3TextConfig(**_GEMMA, sliding_window=8),
    "olmo": lambda: hf.OlmoConfig(**_COMMON),
    "olmo2": lambda: hf.Olmo2Config(**_COMMON),
    "smollm3": lambda: hf.SmolLM3Config(**_COMMON),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        bos_token_id=0, eos_token_id=0, initializer_range=0.15,
    ),
    "gpt_neox": lambda: hf.GPTNeoXConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.15,
        bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip


def tiny(name):
    """The same weights every time, biases included, so that losing one shows."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".bias"):
                parameter.normal_(std=0.1)
    return model
