"""Learning from a teacher."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import assert_same_weights
from helpers.small_runs import small_config, small_trainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from lpa.convert.conversion import factorize
from lpa.errors import UserError
from lpa.train import distillation
from lpa.train.config import DistillConfig
from lpa.train.dry_run import plan_run
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.run import train

SIZES = {
    "vocab_size": 320,  # more rows than the tokenizer has tokens
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "llama"
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(out)
    return out


def naive_loss(model, teacher, inputs, vocabulary, *, temperature, weight):
    """On whole logits, by the definition."""
    targets = inputs["shift_labels"].flatten()
    logits = model.lm_head(model.model(input_ids=inputs["input_ids"]).last_hidden_state).flatten(
        0, 1
    )
    with torch.no_grad():
        wanted = teacher(input_ids=inputs["input_ids"]).logits.flatten(0, 1)
    p = (wanted[:, :vocabulary] / temperature).softmax(-1)
    q = (logits[:, :vocabulary] / temperature).softmax(-1)
    divergence = (p * (p.log() - q.log())).sum(-1)[targets != -100].mean()
    likelihood = F.cross_entropy(logits, targets)
    return (1 - weight) * likelihood + weight * temperature**2 * divergence, divergence


@pytest.mark.parametrize("kind", ["llama", "gemma2", "low-rank head"])
def test_loss_and_gradient_are_those_of_whole_logits(
    prepared, teacher, tmp_path, monkeypatch, kind
):
    """Gemma 2 bounds its logits, so that its head alone does not make them."""
    monkeypatch.setattr(distillation, "_CHUNK", 48)  # several chunks, the last of them shorter
    if kind == "gemma2":
        config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)
        torch.manual_seed(1)
        Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
        teacher = tmp_path / "gemma"
    elif kind == "low-rank head":
        factorized = LlamaForCausalLM.from_pretrained(teacher)
        factorize(factorized, projections="lm_head", rank=4)
        teacher = tmp_path / "factorized"
        factorized.save_pretrained(teacher)
    trainer = small_trainer(
        prepared,
        unequal=True,
        batch_size=4,
        distill={"teacher": teacher, "temperature": 3.0, "weight": 0.3},
    )
    (batch,) = trainer.next_batches()
    (loss,) = trainer.forward_backward([batch], batch.num_targets)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    expected, divergence = naive_loss(
        *(trainer.model, trainer.distiller.teacher, batch.inputs),
        trainer.data.manifest.vocab_size,
        temperature=3.0,
        weight=0.3,
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)  # float32 sums in another order
    assert trainer.distiller.pop_divergence().item() == pytest.approx(
        9 * divergence.item(), rel=1e-4
    )
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_a_teacher_says_what_it_says_to_others(prepared, tmp_path, kind, documents):
    """Though it is asked so that the host need not wait; a window, as Mistral's, leaves it as it is."""
    sizes = {**SIZES, "sliding_window": 8} if kind == "mistral" else SIZES
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    trainer = small_trainer(prepared, distill={"teacher": tmp_path}, intra_document_mask=documents)
    inputs = trainer.next_batches()[0].inputs
    if documents:
        inputs["position_ids"] %= 12  # all longer than a sample, in this text
    found = trainer.distiller._teacher_outputs(inputs)
    inputs = {name: value for name, value in inputs.items() if name != "shift_labels"}
    with torch.no_grad():
        expected = trainer.distiller.teacher.base_model(**inputs, use_cache=False)
    torch.testing.assert_close(found, expected.last_hidden_state.flatten(0, 1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mamba", "depends on the one before it in the sample"),
        ("gpt_oss", "depends on the one before it in the sample"),
        ("bloom", "takes no positions of documents: "),
    ],
)
def test_a_teacher_that_cannot_keep_documents_apart_is_refused(prepared, tmp_path, kind, message):
    sizes = (
        {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1} if kind == "gpt_oss" else SIZES
    )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    small_trainer(prepared, distill={"teacher": tmp_path})
    with pytest.raises(UserError, match=message) as error:
        small_trainer(prepared, distill={"teacher": tmp_path}, intra_document_mask=True)
    assert "\n" not in str(error.value)


def test_a_model_has_nothing_to_learn_from_itself(prepared, run):
    model = {"hidden_size": None, "intermediate_size": None, "num_hidden_layers": None}
    model |= {"num_attention_heads": None, "rank": None, "from_": run / "final"}
    teacher = {"teacher": run / "final", "weight": 1.0}
    trainer = small_trainer(prepared, model=model, distill=teacher)
    outcome = trainer.train_step()
    assert outcome.loss == pytest.approx(0, abs=1e-6)
    assert outcome.grad_norm == pytest.approx(0, abs=1e-5)


def test_resuming_changes_no_bit_nor_record(prepared, teacher, tmp_path):
    fields = {"distill": {"teacher": teacher}, "steps": 6, "log_every": 4}
    train(small_config(prepared, **fields), tmp_path / "straight")
    train(small_config(prepared, **fields, stop_at=3), tmp_path / "stopped")
    train(small_config(prepared, **fields), tmp_path / "stopped", resume=True)
    assert_same_weights(tmp_path / "stopped", tmp_path / "straight")
    logs = [
        [record["distill_loss"] for record in read_metrics(tmp_path / name) if "loss" in record]
        for name in ("straight", "stopped")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2
    assert all(value > 0 for value in logs[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_teaches_as_the_model_that_it_holds(prepared, merged, exported, dtype):
    outcomes, buffers = [], []
    for teacher in (merged, exported):
        trainer = small_trainer(prepared, distill={"teacher": teacher}, dtype=dtype)
        buffers.append(dict(trainer.distiller.teacher.named_buffers()))
        outcomes.append(trainer.train_step())
    # Rounded frequencies of RoPE would put later tokens at other places.
    torch.testing.assert_close(buffers[0], buffers[1], rtol=0, atol=0)
    assert outcomes[0].loss == outcomes[1].loss
    assert outcomes[0].grad_norm == outcomes[1].grad_norm
    plans = [
        plan_run(small_config(prepared, distill={"teacher": teacher})).memory_bytes_per_device
        for teacher in (merged, exported)
    ]
    assert plans[0] == plans[1]


def test_a_gguf_file_of_another_tokenizer_is_refused(prepared, exported, tmp_path):
    content = exported.read_bytes()
    other = tmp_path / "other.gguf"
    first, second = (b"\1" + bytes(7) + token for token in (b"!", b'"'))
    assert first + second in content
    other.write_bytes(content.replace(first + second, second + first, 1))
    with pytest.raises(UserError, match=r"distill.teacher .*other.gguf: its tokenizer is not"):
        small_trainer(prepared, distill={"teacher": other})
    with pytest.raises(UserError, match=r"distill.teacher .*absent.gguf: no such file"):
        plan_run(small_config(prepared, distill={"teacher": tmp_path / "absent.gguf"}))
    other.write_bytes(content[:2000])
    with pytest.raises(UserError, match=r"distill.teacher .*other.gguf: cannot be read as GGUF"):
        plan_run(small_config(prepared, distill={"teacher": other}))


def test_a_run_teaches(prepared, run):
    trainer = small_trainer(prepared, distill={"teacher": run})
    assert trainer.distiller.teacher.config.model_type == "lpa"


def test_another_teacher_is_another_run(prepared, teacher, tmp_path):
    fields = {"steps": 4, "distill": {"teacher": teacher}}
    train(small_config(prepared, **fields, stop_at=2), tmp_path / "run")
    torch.manual_seed(2)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "other")
    for other in (tmp_path / "other", None):
        fields["distill"] = {"teacher": other}
        with pytest.raises(UserError, match=r"distill.weights was [0-9a-f]{64}, now"):
            train(small_config(prepared, **fields), tmp_path / "run", resume=True)


def test_shards_learn_as_one_process_does(run_ranks, prepared, teacher, tmp_path):
    torch.set_num_threads(1)
    trainer = small_trainer(prepared, steps=3, distill={"teacher": teacher})
    steps = [trainer.train_step() for _ in range(3)]
    fields = json.dumps({"distill": {"teacher": str(teacher)}})
    out = tmp_path / "results.json"
    (result,) = run_ranks(2, "layouts.py", prepared, "[[1, 2, 1]]", 3, fields, out)
    # Sums over shards are taken in another order: float32 rounding.
    assert result["losses"] == pytest.approx([step.loss for step in steps], rel=2e-4)


def test_the_plan_counts_the_teacher(prepared, teacher):
    plan = plan_run(small_config(prepared, distill={"teacher": teacher}, dtype="bfloat16"))
    numbers = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(teacher).parameters())
    assert plan.memory_bytes_per_device["teacher"] == 2 * numbers


def test_teachers_that_cannot_be(prepared, tmp_path):
    with pytest.raises(UserError, match=r"distill.teacher .*absent: no such directory"):
        small_trainer(prepared, distill={"teacher": tmp_path / "absent"})
    LlamaForCausalLM(LlamaConfig(**(SIZES | {"vocab_size": 64}))).save_pretrained(tmp_path / "few")
    with pytest.raises(UserError, match=r"distill.teacher .*few: has 64 tokens and the data 300"):
        small_trainer(prepared, distill={"teacher": tmp_path / "few"})
    broken = tmp_path / "few/tokenizer.json"
    for content in ("", "null", '{"model": {}}', "\udcff"):
        broken.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(
            UserError, match=r"distill.teacher .*few: tokenizer .*few: cannot be loaded \(.+\)"
        ):
            small_trainer(prepared, distill={"teacher": tmp_path / "few"})
    with pytest.raises(UserError, match=r"distill.temperature: got 0; expected a positive number"):
        DistillConfig(temperature=0)
    with pytest.raises(UserError, match=r"distill.weight: got 1.5; expected from 0 to 1"):
        DistillConfig(weight=1.5)


@pytest.mark.parametrize("start", [small_trainer, lambda *a, **f: plan_run(small_config(*a, **f))])
def test_a_teacher_of_fewer_positions_is_refused_before_the_first_step(prepared, tmp_path, start):
    config = GPT2Config(vocab_size=320, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "teacher")
    message = (
        r"data\.seq_len: got 32; expected at most the 16 positions of distill\.teacher .*teacher"
    )
    with pytest.raises(UserError, match=message):
        start(prepared, distill={"teacher": tmp_path / "teacher"})
