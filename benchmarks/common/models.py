"""The models that the scripts here set side by side, all of setting 2's 130M shape."""

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lpa.model import LPAForCausalLM, preset_config

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}
RANK = 128


def transformers_dense(**sizes: int) -> nn.Module:
    """(a) The Llama of transformers, its own loss and attention."""
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | sizes)))


def transformers_plain(rank: int = RANK, **sizes: int) -> nn.Module:
    """(b) The same with each attention projection a pair of linears: the plain way to write LPA."""
    model = transformers_dense(**sizes)
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            dense = getattr(layer.self_attn, name)
            pair = nn.Sequential(
                nn.Linear(dense.in_features, rank, bias=False),
                nn.Linear(rank, dense.out_features, bias=False),
            )
            for factor in pair:
                nn.init.normal_(factor.weight, std=(0.02 / rank**0.5) ** 0.5)
            setattr(layer.self_attn, name, pair)
    return model


def our_dense(**sizes: int) -> nn.Module:
    """(c) Ours without low rank."""
    return ours(placement="none", **sizes)


def ours(placement: str = "attention", **sizes: int) -> nn.Module:
    """LPA."""
    sizes = SHAPE | {"rank": RANK, "lm_head_bias": False} | sizes
    return LPAForCausalLM(preset_config("paper-130m-s2", placement=placement, **sizes))


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """The next-token loss alone, where the model can leave the logits out."""
    options = {"return_logits": False} if isinstance(model, LPAForCausalLM) else {}
    loss: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False, **options).loss
    return loss


MODELS = {"a": transformers_dense, "b": transformers_plain, "c": our_dense, "lpa": ours}
NAMES = {
    "a": "transformers, dense",
    "b": "transformers, pairs of linears",
    "c": "ours, dense",
    "lpa": "ours, LPA",
}
