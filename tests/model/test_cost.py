import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lpa.model import PRESETS, LPAConfig, LPAForCausalLM, preset_config
from lpa.model.configuration_lpa import PLACEMENTS
from lpa.model.cost import forward_flops_per_token, parameter_count, training_flops_per_token
from lpa.train.init_weights import freeze_all_but_factors

# From the description of the paper's models (vocabulary 32000, head with bias).
PUBLISHED = {
    "paper-130m-s2": {
        "none": 134_137_856,
        "attention": 115_263_488,
        "ffn": 116_443_136,
        "all": 97_568_768,
    },
    "paper-370m-s1": {
        "none": 368_925_952,
        "attention": 331_126_528,
        "ffn": 356_263_168,
        "all": 318_463_744,
    },
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameters_of_the_published_models(preset, placement):
    assert (
        parameter_count(preset_config(preset, placement=placement)) == PUBLISHED[preset][placement]
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_count_equals_the_model_of_every_preset(preset, placement):
    config = preset_config(preset, placement=placement)
    with torch.device("meta"):
        model = LPAForCausalLM(config)
    assert parameter_count(config) == model.num_parameters()


@pytest.mark.parametrize("tied", [False, True])
def test_count_equals_the_model_with_grouped_queries_and_ranks(tied):
    config = LPAConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        rank=8,
        ranks={"o_proj": None, "up_proj": 16},
        tie_word_embeddings=tied,
    )
    assert parameter_count(config) == sum(p.numel() for p in LPAForCausalLM(config).parameters())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_flops_equal_what_torch_counts(preset, placement):
    # Of two layers: all are alike, and the wide presets count faster so.
    config = preset_config(
        preset, placement=placement, num_hidden_layers=2, attn_implementation="eager"
    )
    batch, seq_len = 2, 256
    with torch.device("meta"):
        model = LPAForCausalLM(config)
        input_ids = torch.zeros(batch, seq_len, dtype=torch.long)

    counter = FlopCounterMode(display=False)
    with counter:
        logits = model(input_ids, use_cache=False).logits
    forward = counter.get_total_flops()
    with counter:
        logits.sum().backward()
    backward = counter.get_total_flops()

    # torch also counts the outer product of RoPE's angles: context × head_dim / 2 products per call.
    tolerance = 1e-4
    tokens = batch * seq_len
    assert forward / tokens == pytest.approx(
        forward_flops_per_token(config, seq_len), rel=tolerance
    )
    assert (forward + backward) / tokens == pytest.approx(
        training_flops_per_token(config, seq_len), rel=tolerance
    )


@pytest.mark.parametrize("placement", ["attention", "all"])
def test_frozen_matrices_have_no_gradient_to_count(placement):
    config = preset_config("nano", placement=placement, attn_implementation="eager")
    with torch.device("meta"):
        model = LPAForCausalLM(config)
        input_ids = torch.zeros(2, 256, dtype=torch.long)
    freeze_all_but_factors(model)
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids, use_cache=False).logits.sum().backward()
    # Which counts no gradient of the first layer's inputs either.
    assert training_flops_per_token(config, 256, trainable="factors") == pytest.approx(
        counter.get_total_flops() / 512, rel=0.01
    )
