import torch

from lpa.model import LPAConfig, LPAForCausalLM
from lpa.train.config import OptimConfig
from lpa.train.optim import build_optimizer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "rank": 4,
}


def test_matrices_decay_and_vectors_do_not():
    model = LPAForCausalLM(LPAConfig(**SIZES, lm_head_bias=True))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    by_name = {name: decays[id(p)] for name, p in model.named_parameters()}
    assert {n for n, d in by_name.items() if d == 0} == {
        n for n in by_name if n.endswith("norm.weight") or n == "lm_head.bias"
    } - {"model.embed_tokens.weight"}
    assert set(by_name.values()) == {0.0, 0.3}


def test_one_step_is_adamw_by_hand():
    """Loshchilov & Hutter 2019, algorithm 2, with bias correction."""
    linear = torch.nn.Linear(3, 2, bias=False)
    before = linear.weight.detach().clone()
    optimizer = build_optimizer(linear, OptimConfig(lr=0.01, weight_decay=0.1, eps=1e-8))
    linear.weight.grad = torch.randn(2, 3)
    gradient = linear.weight.grad.clone()
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(linear.weight.detach(), expected)
