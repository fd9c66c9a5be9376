"""How often a host waits for its device, and how often processes meet, in a step and in an evaluation."""

import json

import pytest
import torch
from helpers.device_traffic import DeviceTraffic
from helpers.small_runs import small_trainer
from transformers import LlamaConfig, LlamaForCausalLM

# One read, of what all must know, and the host's part of that, which is sent without a wait.
STEP = {"tolist": 1, "tensor": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, prepared, run):
    """A dense model with the tokenizer of the data."""
    path = tmp_path_factory.mktemp("teacher") / "dense"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, vocab_size=300)
    LlamaForCausalLM(config).save_pretrained(path)
    for file in (run / "final").glob("tokenizer*"):
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"micro_batch_size": 1, "unequal": True},
        {"optim": {"name": "muon"}, "dtype": "bfloat16"},
        {"optim": {"low_rank_decay": "product"}, "activation_checkpointing": "latent"},
        {"intra_document_mask": True, "micro_batch_size": 1},
    ],
    ids=["adamw", "accumulated", "muon-bfloat16", "product-decay", "documents"],
)
def test_the_host_waits_for_the_device_once_a_step(prepared, fields):
    trainer = small_trainer(prepared, **fields)
    trainer.train_step()  # the first of a session also asks for its own number of tokens
    with DeviceTraffic() as traffic:
        for _ in range(3):
            trainer.train_step()
    assert traffic.reads == {kind: 3 * count for kind, count in STEP.items()}


@pytest.mark.parametrize("documents", [False, True])
def test_a_teacher_adds_no_wait(prepared, teacher, monkeypatch, documents):
    monkeypatch.setattr("lpa.train.distillation._CHUNK", 48)
    trainer = small_trainer(
        prepared, distill={"teacher": teacher}, micro_batch_size=4, intra_document_mask=documents
    )
    trainer.train_step()
    with DeviceTraffic() as traffic:
        trainer.train_step()
    assert traffic.reads == STEP


@pytest.mark.parametrize("documents", [False, True])
def test_an_evaluation_is_read_once_at_its_end(prepared, documents):
    trainer = small_trainer(prepared, micro_batch_size=2, intra_document_mask=documents)
    with DeviceTraffic() as traffic:
        trainer.evaluate(500)
    assert traffic.reads == {"tolist": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("passes", "sync_each_batch"), [(1, False), (4, False), (4, True)])
def test_processes_meet_once_a_step(run_ranks, prepared, tmp_path, passes, sync_each_batch):
    """Beside what FSDP does for weights and gradients: two layers, and what is outside of them."""
    torch.set_num_threads(1)
    fields = {"micro_batch_size": 4 // passes, "unequal": True}
    alone = small_trainer(prepared, **fields)
    fields["parallel"] = {"sync_each_batch": sync_each_batch}
    losses = [alone.train_step().loss for _ in range(2)]
    out = tmp_path / "results.json"
    layouts = {"shard": [1, 2, 1], "replicate": [2, 1, 1]}
    results = run_ranks(
        *(2, "host_syncs.py", prepared, json.dumps(list(layouts.values())), json.dumps(fields), out)
    )
    for name, result in zip(layouts, results, strict=True):
        reads, collectives, _ = result["step"]
        assert reads == STEP, name
        syncs = passes if sync_each_batch else 1
        if name == "replicate":
            assert collectives["allreduce"] == 1 + 3 * syncs
        else:
            assert collectives["allreduce"] == 1
            assert collectives["reduce_scatter_base"] == 3 * syncs
            # A layer for each forward and each backward pass; embedding, last norm and head once.
            assert collectives["allgather_base"] == passes * 2 * 2 + 1
        reads, _ = result["evaluation"]
        # What processes tell one another about signals is sent and read once each; then the sums are read.
        assert reads == {"tolist": reads["tensor"] + 1, "tensor": reads["tensor"]}, name
        assert result["losses"] == pytest.approx(losses, rel=2e-4)
