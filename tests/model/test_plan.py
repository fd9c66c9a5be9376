import json
from functools import partial

import pytest
import torch

from lpa.errors import UserError
from lpa.model import LPAConfig, LPAForCausalLM, parameter_count, preset_config
from lpa.model.cost import forward_flops_per_token
from lpa.model.plan import (
    activation_bytes,
    dense_config,
    match_dense_cost,
    open_planned_config,
    plan_model,
)


def test_the_parts_of_a_plan_add_up():
    config = preset_config("paper-130m-s2")
    plan = plan_model(config, seq_len=256, batch_size=8, devices=4, dtype=torch.bfloat16)
    parts = dict(plan.parameters)
    total = parts.pop("total")
    assert total == sum(parts.values()) == parameter_count(config)
    assert parts["attention"] == 12 * 4 * 128 * (768 + 768)
    assert plan.break_even_rank["q_proj"] == 384
    assert plan.kv_cache_bytes_per_token == {
        "plain": 12 * 2 * 768 * 2,
        "latent": 12 * (768 + 128) * 2,  # keys stay as RoPE turned them
    }
    memory = plan.memory_bytes_per_device
    assert memory["weights"] == memory["gradients"] == total * 4 / 4
    assert memory["optimizer"] == 2 * memory["weights"]


def measured_bytes(config: LPAConfig, batch_size: int, dtype: torch.dtype) -> int:
    """What autograd keeps in a real forward pass over 256 tokens on the CPU, parameters apart."""
    model = LPAForCausalLM(config).train()
    kept = {}
    held: list[torch.Tensor] = []

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    tokens = torch.zeros(batch_size, 256, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        output = model.model(tokens, use_cache=False).last_hidden_state
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert output.requires_grad
    return sum(size for place, size in kept.items() if place not in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoder_type", ["llama", "paper"])
@pytest.mark.parametrize("placement", ["none", "attention", "all"])
def test_activations_are_what_a_real_forward_pass_keeps(decoder_type, placement, dtype):
    def config(layers: int, **fields) -> LPAConfig:
        return LPAConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=layers,
            num_attention_heads=4,
            rank=32,
            placement=placement,
            decoder_type=decoder_type,
            **fields,
        )

    def growth(measure) -> int:
        """What twice the batch takes more, so without weights in another form, in layers 2 to 5."""
        deep, shallow = config(6, dense_layers=[4]), config(2)
        deep_growth, shallow_growth = (
            measure(one, batch_size=4, dtype=dtype) - measure(one, batch_size=2, dtype=dtype)
            for one in (deep, shallow)
        )
        return deep_growth - shallow_growth

    planned = growth(partial(activation_bytes, seq_len=256))
    # Fake LayerNorms keep their statistics in the dtype of the products, real ones in float32.
    assert planned == pytest.approx(growth(measured_bytes), rel=0.003)


@pytest.mark.parametrize("low_rank_method", ["cola", "sltrain"])
def test_a_layer_is_dense_in_a_model_of_another_method(low_rank_method):
    method = {"low_rank_method": low_rank_method}
    parts, whole = (
        preset_config("nano", dense_layers=[0], **method),
        preset_config("nano", **method),
    )
    sizes = {"seq_len": 32, "batch_size": 2, "dtype": torch.float32}
    layers = [activation_bytes(config, **sizes) for config in (parts, whole, dense_config(whole))]
    assert 4 * (layers[0] - layers[1]) == layers[2] - layers[1]


@pytest.mark.parametrize("what", ["params", "flops"])
def test_a_match_costs_what_the_dense_model_does(what):
    config = preset_config("130m")
    dense = dense_config(config)
    matches = {match.field: match for match in match_dense_cost(config, what, seq_len=512)}
    assert set(matches) == {"intermediate_size", "num_hidden_layers", "rank"}
    for name in ("intermediate_size", "rank"):
        changed = preset_config("130m", **{name: matches[name].value})
        if what == "params":
            ratio = parameter_count(changed) / parameter_count(dense)
        else:
            ratio = forward_flops_per_token(changed, 512) / forward_flops_per_token(dense, 512)
        assert ratio == pytest.approx(matches[name].ratio)
        assert abs(ratio - 1) < 0.01
        assert matches[name].within_one_percent
    assert matches["num_hidden_layers"].value > 12
    assert matches["rank"].value == 384


def test_a_rank_is_matched_up_to_the_limit_of_the_projections_that_have_it():
    config = preset_config("nano", placement="ffn", rank=128, num_key_value_heads=1)
    assert min(config.projection_shape("k_proj")) < 128
    matches = {match.field: match for match in match_dense_cost(config, "params", seq_len=64)}
    assert matches["rank"].within_one_percent
    assert matches["rank"].value > 128


def test_dynamic_rope_is_planned():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    plans = [
        plan_model(preset_config("nano", rope_parameters=parameters), seq_len=64)
        for parameters in (rope, None)
    ]
    assert plans[0] == plans[1]


def test_a_dense_model_has_nothing_to_spend():
    with pytest.raises(UserError, match="--match: the model is dense"):
        match_dense_cost(preset_config("nano", placement="none"), "params", seq_len=256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "--seq-len: got 0"),
        ({"seq_len": 9999}, "--seq-len: got 9999; the model has 1024 positions"),
        ({"seq_len": 16, "batch_size": 0}, "--batch-size: got 0"),
        ({"seq_len": 16, "devices": 0}, "--devices: got 0"),
    ],
)
def test_bad_values_are_refused_by_name(options, message):
    with pytest.raises(UserError) as error:
        plan_model(preset_config("nano"), **options)
    assert message in str(error.value)


def test_the_command_line_plans_presets_files_and_runs(lpa, run):
    plan = lpa("plan", "3b", "--seq-len", 2048, "--batch-size", 4, "--devices", 8, "--json")
    assert plan.code == 0, plan.stderr
    figures = plan.json
    assert 3.1e9 < figures["dense"]["parameters"]["total"] < 3.3e9
    assert figures["parameters"]["total"] < figures["dense"]["parameters"]["total"]
    assert figures["flops_per_token"]["training"] == 3 * figures["flops_per_token"]["forward"]

    trained = json.loads((run / "result.json").read_text())["parameters"]
    for source in (run, run / "final" / "config.json"):
        assert lpa("plan", source, "--json").json["parameters"]["total"] == trained
    none = lpa("plan", run, "--placement", "none", "--json").json
    assert (plan.json["seq_len"], none["seq_len"], none["dense"]["seq_len"]) == (2048, 32, 32)
    assert none["parameters"] == none["dense"]["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["giant"],
            "model: got 'giant'; expected a config.json, a directory, or one of the presets",
        ),
        (["nano", "--rank", "0"], "--rank: got 0; expected a whole number from 1 to 2,147,483,647"),
        (["nano", "--placement", "some"], "placement: got some"),
        (
            ["nano", "--placement", "none", "--rank", "32"],
            "--rank: got 32 where all projections are dense; expected a low-rank --placement",
        ),
    ],
)
def test_bad_input_on_the_command_line(lpa, arguments, message):
    finished = lpa("plan", *arguments)
    assert finished.code == 2
    assert finished.stderr.count("\n") == 1
    assert message in finished.stderr


def test_a_rank_of_a_dense_model_is_refused(tmp_path):
    preset_config("nano", placement="none").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--rank: got 8 where all projections are dense"):
        open_planned_config(tmp_path, rank=8)
    assert open_planned_config(tmp_path, rank=8, placement="attention").rank == 8


def test_a_rank_or_placement_that_is_asked_for_goes_before_ranks(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LPAConfig(rank=8, placement="all", **sizes)
    named = LPAConfig(**(config.to_diff_dict() | {"ranks": dict.fromkeys(config.projections, 8)}))
    named.save_pretrained(tmp_path)
    for changes in ({"rank": 4}, {"placement": "none"}, {"placement": "attention"}):
        planned = open_planned_config(tmp_path, **changes)
        expected = LPAConfig(**(config.to_diff_dict() | changes))
        assert parameter_count(planned) == parameter_count(expected)
    assert parameter_count(open_planned_config(tmp_path)) == parameter_count(config)
    by_ffn_rank = {"placement": "ffn", "ffn_rank": 8}
    for model in (named, LPAConfig(**(config.to_diff_dict() | by_ffn_rank))):
        fields = [match.field for match in match_dense_cost(model, "params", seq_len=64)]
        assert fields == ["intermediate_size", "num_hidden_layers"]


@pytest.mark.parametrize(("rank", "of_ffn"), [(None, 384), (128, 384), (64, 64)])
def test_a_preset_and_its_configuration_get_the_same_ranks(rank, of_ffn):
    preset = "paper-130m-s2"
    for model in (preset, preset_config(preset)):
        planned = open_planned_config(model, placement="all", rank=rank)
        assert planned.projection_rank("up_proj", 0) == of_ffn
