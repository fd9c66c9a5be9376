"""One step of the real program without numbers, and the plan that is computed by rule beside it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from lpa.errors import UserError
from lpa.scoring.losses import batch_nlls
from lpa.train.config import RunConfig
from lpa.train.distributed.parallelize import inference_context, parallelize
from lpa.train.dry_run import plan_run
from lpa.train.simulation.collectives import Collective
from lpa.train.simulation.fake_world import fake_process_group, fake_tensors, zeros_like_batch
from lpa.train.simulation.run_shape import RunShape
from lpa.train.simulation.simulate import simulate_step
from lpa.train.simulation.step_memory import StepMemory

# In one worker: they share what takes long to make.
pytestmark = pytest.mark.xdist_group("simulation")

LAYERS = 2


def config_of(
    layout=(1, 1, 1), *, passes=1, optim=None, train=None, sync_each_batch=False, **model
) -> RunConfig:
    replicate, shard, tensor = layout
    return RunConfig.from_dict(
        {
            "data": {"path": "nowhere", "seq_len": 128},
            "model": {"preset": "nano", "num_hidden_layers": LAYERS, "vocab_size": 4096} | model,
            "optim": {"name": "muon"} | (optim or {}),
            "train": {
                "batch_size": replicate * shard * 2 * passes,
                "micro_batch_size": 2,
                "dtype": "bfloat16",
                "device": "cpu",
            }
            | (train or {}),
            "parallel": {
                "replicate": replicate,
                "shard": shard,
                "tensor": tensor,
                "sync_each_batch": sync_each_batch,
            },
        }
    )


CASES = {
    "alone": config_of(),
    "alone_accumulating": config_of(passes=4),
    "float32": config_of((1, 4, 1), train={"dtype": "float32"}),
    "sharded_64": config_of((1, 64, 1), passes=4),
    # More processes than Muon has matrices of a shape, and numbers of them that the groups do not divide.
    "sharded_512": config_of((1, 512, 1)),
    "replicated_6": config_of((3, 2, 1), passes=2),
    "dense_sharded": config_of((1, 8, 1), placement="none", optim={"name": "adamw"}),
    "replicated": config_of((4, 2, 1), passes=2),
    "synced_each_pass": config_of((2, 4, 1), passes=4, sync_each_batch=True),
    "all_three": config_of((2, 4, 2), passes=5),
    "dense_tensor": config_of((1, 1, 4), placement="none"),
    "checkpointed": config_of((1, 4, 1), train={"activation_checkpointing": "full"}),
    "first_layer_dense": config_of((1, 4, 1), dense_layers=[0], placement="all", rank=16),
    # Layers, not the loss, take the most, and the first the most of them.
    "recomputed": config_of(
        dense_layers=[0],
        placement="all",
        rank=16,
        num_hidden_layers=12,
        vocab_size=512,
        train={"activation_checkpointing": "full", "micro_batch_size": 16, "batch_size": 16},
    ),
}


@cache
def simulated(name):
    return simulate_step(CASES[name])


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return plan_run(CASES[request.param]), simulated(request.param)


def by_key(collectives: list[Collective]) -> dict[tuple[str, str, str], Collective]:
    """Without those of the gradient's norm, one number per parameter, which no rule speaks of."""
    return {(c.phase, c.dimension, c.kind): c for c in collectives if c.message_bytes > 1000}


def test_the_plan_agrees_with_the_step_on_memory(case):
    plan, step = case
    assert plan.step_memory_bytes.keys() == step.step_memory_bytes.keys()
    for phase, kinds in step.step_memory_bytes.items():
        planned = plan.step_memory_bytes[phase]
        # The rules leave out the buffers of single layers on their way.
        assert sum(planned.values()) == pytest.approx(sum(kinds.values()), rel=0.04)
        for kind in ("weights", "optimizer"):
            assert planned[kind] == pytest.approx(kinds[kind], rel=0.001)
    assert plan.peak_bytes_per_device == pytest.approx(step.peak_bytes_per_device, rel=0.04)


def test_the_largest_of_unequal_layers_is_gathered_with_what_is_outside_them():
    sizes = {"placement": "all", "rank": 16, "num_hidden_layers": 6}
    plan = {
        str(dense_layers): plan_run(config_of((1, 4, 1), dense_layers=dense_layers, **sizes))
        for dense_layers in ([0], [5], [0, 1, 2])
    }
    gathered = {name: of.memory_bytes_per_device["gathered"] for name, of in plan.items()}
    dense_layer = 4 * 256 * 256 + 3 * 256 * 688 + 2 * 256
    outside = 2 * 4096 * 256 + 256
    assert set(gathered.values()) == {outside * 4 + dense_layer * 2}


@pytest.mark.parametrize("low_rank_method", ["cola", "sltrain"])
def test_a_dense_layer_of_another_method_is_planned(low_rank_method):
    config = config_of(dense_layers=[0], low_rank_method=low_rank_method, optim={"name": "adamw"})
    assert plan_run(config).peak_bytes_per_device > 0


def test_the_plan_names_every_exchange_and_its_bytes(case):
    plan, step = case
    planned, done = by_key(plan.collectives), by_key(step.collectives)
    assert planned.keys() == done.keys()
    for key, found in done.items():
        assert planned[key].count == found.count, key
        assert planned[key].message_bytes == pytest.approx(found.message_bytes, rel=0.01), key


def test_fsdp_gathers_each_layer_twice_a_pass_and_reduces_once_a_step():
    passes = 5
    step = simulated("all_three")
    found = by_key(step.collectives)
    assert found["forward_backward", "shard", "all_gather"].count == passes * 2 * LAYERS + 1
    assert found["forward_backward", "shard", "reduce_scatter"].count == LAYERS + 1
    assert found["forward_backward", "replicate", "all_reduce"].count == LAYERS + 1
    # Seven projections a layer, the embedding, the head, and three of the loss.
    assert found["forward_backward", "tensor", "all_reduce"].count == passes * (7 * LAYERS + 5)
    sizes = {"replicate": 2, "shard": 4, "tensor": 2}
    assert all(c.processes == sizes[c.dimension] for c in step.collectives)


def test_muon_takes_no_more_memory_and_sends_no_more_with_more_processes():
    """Rank 0 holds a whole matrix or two and what the iteration makes of them, and sends one back."""
    largest = 256 * 688 * 2  # bytes of an FFN matrix in bfloat16
    plans = {size: plan_run(config_of((1, size, 1))) for size in (8, 64, 512)}
    held = {size: plan.memory_bytes_per_device["orthogonalizing"] for size, plan in plans.items()}
    assert held[8] > held[64] > held[512]
    assert held[512] < 4.5 * largest
    step = simulated("sharded_512")
    assert step.step_memory_bytes["optimizer"]["temporary"] < 4.5 * largest
    sent = {
        size: sum(c.sent_bytes for c in plan.collectives if c.phase == "optimizer")
        for size, plan in plans.items()
    }
    assert sent[512] < sent[64] < sent[8]


@pytest.mark.parametrize("name", ["alone", "checkpointed", "all_three"])
def test_an_evaluation_takes_less_memory_than_a_step(name):
    """So no phase of the plan speaks of it. Logits are held in chunks, and of no chunk a gradient."""
    config = CASES[name]
    config = replace(config, train=replace(config.train, micro_batch_size=16, batch_size=16 * 8))
    shape = RunShape.of(config)
    with fake_process_group(shape.processes):
        model = shape.build_meta_model(config)
        parallelize(model, shape.layout, "cpu", shape.dtype)
        with fake_tensors():
            model.to_empty(device="cpu")
            memory = StepMemory(model)
            batch = zeros_like_batch(16, shape.seq_len, intra_document_mask=False)
            with memory, inference_context(model, shape.layout):
                batch_nlls(model, [batch], device=torch.device("cpu"), dtype=shape.dtype)
    found = memory.peak("forward_backward")
    planned = plan_run(config).step_memory_bytes["forward_backward"]
    assert found["weights"] == pytest.approx(planned["weights"], rel=0.001)
    assert found["activations"] + found["temporary"] < planned["activations"]
    assert sum(found.values()) < sum(planned.values()) - planned["optimizer"]
    if shape.layout.tensor == 1:  # else each process holds all logits of its part of the vocabulary
        logits = 16 * shape.seq_len * shape.model_config.vocab_size * 4
        assert found["activations"] + found["temporary"] < logits


def test_gradients_synced_in_each_pass_stay_sharded():
    held = {}
    for sync_each_batch in (False, True):
        config = config_of((1, 8, 1), passes=4, sync_each_batch=sync_each_batch)
        held[sync_each_batch] = plan_run(config).memory_bytes_per_device
    assert held[True]["accumulated"] == 0
    assert held[False]["accumulated"] == 8 * held[False]["gradients"]
    step = simulated("synced_each_pass").step_memory_bytes["forward_backward"]
    # Sharded over four, by at most a row of a weight that does not divide.
    assert step["gradients"] == pytest.approx(held[True]["gradients"] * 2, rel=0.02)


def test_tensor_parallelism_sends_latents_where_a_dense_model_sends_the_stream():
    def message_bytes(placement: str) -> int:
        step = simulate_step(config_of((1, 1, 2), placement=placement, rank=32))
        return by_key(step.collectives)["forward_backward", "tensor", "all_reduce"].message_bytes

    tokens, width, rank = 2 * 128, 256, 32
    saved = message_bytes("none") - message_bytes("attention")
    # Of q, k and v a dense model sends the gradient of their input, of o the output, all in bfloat16.
    assert saved == LAYERS * tokens * 4 * 2 * (width - rank)


def test_a_teacher_is_refused(tmp_path):
    config = config_of()
    config.distill.teacher = tmp_path
    with pytest.raises(UserError, match="--simulate: got a run with a teacher"):
        simulate_step(config)


@pytest.mark.parametrize("name", ["spectron", "galore", "apollo"])
def test_an_optimizer_that_reads_numbers_is_refused(name):
    with pytest.raises(
        UserError, match=f"--simulate: got optim.name {name}, whose steps depend on"
    ):
        simulate_step(config_of((1, 1, 1), optim={"name": name}))


def test_the_command_prints_both(lpa, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config_of((1, 2, 1)).to_yaml())
    finished = lpa("train", recipe, "--dry-run", "--simulate", "--json")
    assert finished.code == 0, finished.stderr
    of_step = finished.json["simulation"]["step_memory_bytes"]
    assert finished.json["step_memory_bytes"].keys() == of_step.keys()
    printed = lpa("train", recipe, "--dry-run", "--simulate")
    assert "reduce_scatter" in printed.stdout
    assert "gathered weights" in printed.stdout
    refused = lpa("train", recipe, "--simulate")
    assert refused.code == 2
    assert "--simulate: works only with --dry-run" in refused.stderr


@pytest.mark.parametrize("plan", [plan_run, simulate_step])
def test_eager_attention_keeps_its_weights(plan):
    """In bfloat16 the scores, their float32 softmax and what follows: more than a fused kernel keeps."""
    peaks = {
        name: plan(config_of(attn_implementation=name)).peak_bytes_per_device
        for name in (None, "sdpa", "eager")
    }
    assert peaks[None] == peaks["sdpa"]
    heads, samples, length = 4, 2, 128
    weights = LAYERS * heads * samples * length**2
    assert 4 * weights < peaks["eager"] - peaks["sdpa"] < 16 * weights


def test_a_plan_refuses_what_the_run_would_refuse():
    product = config_of(optim={"low_rank_decay": "product"}, low_rank_method="cola")
    with pytest.raises(UserError, match=r"optim\.low_rank_decay: got product; expected factors"):
        plan_run(product)
    taught = config_of((1, 1, 2))
    taught.distill.teacher = Path("nowhere")
    with pytest.raises(UserError, match=r"distill\.teacher: got parallel\.tensor 2; expected 1"):
        plan_run(taught)
