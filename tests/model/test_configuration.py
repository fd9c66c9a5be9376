import warnings

import pytest
import torch

from lpa.errors import LPAWarning, UserError
from lpa.model import PRESETS, LPAConfig, LPAForCausalLM, preset_config
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, FFN_PROJECTIONS, PLACEMENTS

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rank": 8,
}


@pytest.mark.parametrize("decoder_type", FFN_PROJECTIONS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement_gives_ranks_to_its_projections_alone(decoder_type, placement):
    config = LPAConfig(**SMALL, decoder_type=decoder_type, placement=placement)
    low_rank = {name for name in config.projections if config.projection_rank(name, 0)}
    attention, ffn = set(ATTENTION_PROJECTIONS), set(FFN_PROJECTIONS[decoder_type])
    expected = {"none": set(), "attention": attention, "ffn": ffn, "all": attention | ffn}
    assert low_rank == expected[placement]


def test_ranks_and_dense_layers_say_the_last_word():
    config = LPAConfig(
        **SMALL,
        placement="all",
        ffn_rank=12,
        ranks={"v_proj": 4, "q_proj": None, "up_proj": 6},
        dense_layers=[1],
    )
    ranks = {name: config.projection_rank(name, 0) for name in config.projections}
    assert ranks == {
        "q_proj": None,
        "k_proj": 8,
        "v_proj": 4,
        "o_proj": 8,
        "gate_proj": 12,
        "up_proj": 6,
        "down_proj": 12,
    }
    assert not any(config.projection_rank(name, 1) for name in config.projections)


def test_the_rank_defaults_to_a_quarter_of_the_width():
    assert LPAConfig(**(SMALL | {"rank": None})).rank == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"placement": "attn"}, "placement: got 'attn'; expected one of none, attention"),
        ({"rank": 0}, "rank: got 0; expected an integer from 1 to 32"),
        ({"rank": 33}, "rank: got 33; expected an integer from 1 to 32"),
        ({"ranks": {"v_proj": 40}}, "ranks.v_proj: got 40"),
        ({"ranks": {"qkv": 4}}, "ranks: got 'qkv'; expected one of q_proj"),
        ({"placement": "all", "ffn_rank": 33}, "ffn_rank: got 33"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: got 3; expected a divisor"),
        ({"hidden_size": 0}, "hidden_size: got 0"),
        (
            {"hidden_size": 30},
            "hidden_size: got 30, which is not divisible by num_attention_heads (4); "
            "expected a multiple of it, or a head_dim",
        ),
        ({"dense_layers": [2]}, "dense_layers: got 2; expected from 0 to 1"),
        ({"decoder_type": "gpt"}, "decoder_type: got 'gpt'; expected one of llama, paper"),
        ({"decoder_type": "paper", "ranks": {"up_proj": 4}}, "ranks: got 'up_proj'"),
        ({"resid_pdrop": 1.0}, "resid_pdrop: got 1.0; expected at least 0 and below 1"),
        ({"hidden_act": "foo"}, "hidden_act: got 'foo'; expected one of gelu"),
        ({"hidden_act": "sillu"}, "did you mean silu?"),
        ({"head_dim": 7}, "head_dim: got 7; expected an even number"),
        ({"initialization": "svd"}, "initialization: got 'svd'; expected one of linear, scaled"),
        ({"initializer_range": 0.0}, "initializer_range: got 0.0; expected a positive number"),
    ],
)
def test_bad_values_are_refused_by_name(fields, message):
    with pytest.raises(UserError) as error:
        LPAConfig(**(SMALL | fields))
    assert message in str(error.value)


def test_heads_of_learned_positions_may_have_an_odd_width():
    config = LPAConfig(**(SMALL | {"decoder_type": "paper", "hidden_size": 36}))
    assert config.head_dim == 9
    logits = LPAForCausalLM(config)(torch.zeros(1, 4, dtype=torch.long)).logits
    assert logits.shape == (1, 4, config.vocab_size)


def test_one_warning_for_four_projections_of_one_shape():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LPAConfig(**(SMALL | {"rank": 16}))
    assert [w.category for w in caught] == [LPAWarning]
    assert "up to 15" in str(caught[0].message)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_in_every_placement(name):
    for placement in PLACEMENTS:
        assert preset_config(name, placement=placement).placement == placement


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="preset: got 'giant'; expected one of paper-130m-s2"):
        preset_config("giant")
