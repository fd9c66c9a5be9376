"""LoRA by the names that people use, on pairs, on dense projections and on both."""

import peft
import pytest
import torch
from helpers.architectures import tiny
from helpers.small_models import small_model

import lpa
from lpa.lowrank import LowRankLinear

TOKENS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(0))


def gpt2():
    model = tiny("gpt2")
    lpa.factorize(model, rank=5)
    return model


MODELS = {
    "attention": small_model,
    "all": lambda: small_model(placement="all"),
    "mixed layers": lambda: small_model(dense_layers=[0], placement="all"),
    "dense": lambda: small_model(placement="none"),
    "cola": lambda: small_model(low_rank_method="cola"),
    "gpt2": gpt2,
}
TARGETS = {
    "default": None,
    "q_proj": ["q_proj"],
    "usual": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "expression": r".*\.self_attn\.[qv]_proj",
    "all-linear": "all-linear",
    "factors": ["q_proj.down", "q_proj.up"],
}
CASES = [
    *((model, targets) for model in list(MODELS)[:3] for targets in TARGETS),
    *(("dense", targets) for targets in ("default", "usual", "all-linear")),
    *(("cola", targets) for targets in ("default", "all-linear")),
    *(("gpt2", targets) for targets in ("default", "all-linear")),
]


def trained(model):
    """The model after two steps of its adapters, of which the first moves B alone, as it starts at zero."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize(("name", "targets"), CASES)
def test_it_trains_saves_reloads_and_merges(name, targets, tmp_path):
    build = MODELS[name]
    base = build()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    plain = base(TOKENS).logits
    config = peft.LoraConfig(r=2, target_modules=TARGETS[targets], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    adapted = {n.rpartition(".lora_A")[0] for n, _ in model.named_parameters() if ".lora_A." in n}
    wrapped = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    if name == "attention" and targets == "default":
        assert len(adapted) == 2 * 2 * 2  # layers × projections × factors
    assert adapted
    assert all(p.requires_grad == (".lora_" in n) for n, p in model.named_parameters())
    torch.testing.assert_close(model(TOKENS).logits, plain)

    logits = trained(model)(TOKENS).logits
    assert not torch.allclose(logits, plain, atol=1e-3)
    after = {
        n.replace(".base_layer", ""): p for n, p in model.base_model.model.state_dict().items()
    }
    assert all(torch.equal(after[key], value) for key, value in before.items())

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(build(), tmp_path / "adapter")
    torch.testing.assert_close(again(TOKENS).logits, logits)

    merged = again.merge_and_unload()
    pairs = [module for module in merged.modules() if isinstance(module, LowRankLinear)]
    assert [pair.rank for pair in pairs] == [pair.rank for pair in wrapped]
    assert merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(merged(TOKENS).logits, logits, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        lpa.load(tmp_path / "merged")(TOKENS).logits, logits, atol=1e-4, rtol=1e-4
    )


def test_two_adapters_take_turns():
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(small_model(), config)
    first = model(TOKENS).logits
    model.add_adapter("other", config)
    assert all(p.requires_grad == (".default." in n) for n, p in model.named_parameters())
    torch.testing.assert_close(model(TOKENS).logits, first)
    model.set_adapter("other")
    other = model(TOKENS).logits
    assert not torch.allclose(other, first, atol=1e-3)
    with model.disable_adapter():
        torch.testing.assert_close(model(TOKENS).logits, small_model()(TOKENS).logits)
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(model(TOKENS).logits, first)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"use_rslora": True}, {"lora_dropout": 0.5}]
)
def test_kinds_of_lora_do_the_same(options):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "gate_proj"], **options)
    model = peft.get_peft_model(small_model(), config)
    torch.testing.assert_close(model.eval()(TOKENS).logits, small_model()(TOKENS).logits)
    logits = trained(model)(TOKENS).logits
    torch.testing.assert_close(
        model.merge_and_unload()(TOKENS).logits, logits, atol=1e-4, rtol=1e-4
    )


def test_the_adapter_of_transformers_itself():
    model = small_model()
    plain = model(TOKENS).logits
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert not torch.allclose(model(TOKENS).logits, plain, atol=1e-3)
    model.disable_adapters()
    torch.testing.assert_close(model(TOKENS).logits, plain)
