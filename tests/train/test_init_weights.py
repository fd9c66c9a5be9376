"""Runs that start from the weights of a directory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_same_weights, final_weights
from helpers.small_models import small_model
from helpers.small_runs import small_config, small_trainer
from safetensors.torch import load_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lpa.data import Manifest
from lpa.errors import UserError
from lpa.lowrank import LowRankLinear
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.config import RunConfig
from lpa.train.dry_run import plan_run
from lpa.train.init_weights import with_source_seq_len
from lpa.train.run import train

NO_MODEL = {"hidden_size": None, "intermediate_size": None, "num_hidden_layers": None}
NO_MODEL |= {"num_attention_heads": None, "rank": None}


@pytest.fixture(scope="module")
def source(run) -> Path:
    """A trained model with the tokenizer of the data."""
    return run / "final"


def healing(data, source, **fields):
    model = {**NO_MODEL, "from_": source}
    return small_config(data, model=model, **fields)


def healing_trainer(data, source, **fields):
    return small_trainer(data, model={**NO_MODEL, "from_": source}, **fields)


def test_the_start_is_the_source(prepared, source):
    trainer = healing_trainer(prepared, source)
    expected = LPAForCausalLM.from_pretrained(source)
    ids = torch.arange(32)[None]
    with torch.no_grad():
        ours = trainer.model.eval()(input_ids=ids).logits
        assert torch.equal(ours, expected(input_ids=ids).logits)


def test_a_head_of_its_own_survives_a_configuration_that_ties_it(prepared, source, tmp_path):
    own = tmp_path / "source"
    shutil.copytree(source, own)
    fields = json.loads((own / "config.json").read_text()) | {"tie_word_embeddings": True}
    (own / "config.json").write_text(json.dumps(fields))
    trainer = healing_trainer(prepared, own)
    assert torch.equal(
        trainer.model.lm_head.weight, load_file(own / "model.safetensors")["lm_head.weight"]
    )
    assert not trainer.model_config.tie_word_embeddings


def test_only_the_factors_move(prepared, source, tmp_path):
    train(healing(prepared, source, steps=3, optim={"trainable": "factors"}), tmp_path / "run")
    before, after = load_file(source / "model.safetensors"), final_weights(tmp_path / "run")
    assert before.keys() == after.keys()
    for name, weight in after.items():
        moved = ".down." in name or ".up." in name
        assert torch.equal(weight, before[name]) != moved, name
    healed = LPAForCausalLM.from_pretrained(tmp_path / "run/final")
    assert healed.config.rank == LPAForCausalLM.from_pretrained(source).config.rank
    assert (tmp_path / "run/final/tokenizer.json").is_file()


def test_the_ends_of_the_source_survive(prepared, source, tmp_path):
    """Of an instruction-tuned model several tokens end a text, in either of its files."""
    own = tmp_path / "source"
    shutil.copytree(source, own)
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((own / name).read_text()) | {"eos_token_id": [0, 7]}
        fields.pop("pad_token_id", None)
        (own / name).write_text(json.dumps(fields))
    generation = GenerationConfig.from_pretrained(own)
    generation.update(do_sample=True, temperature=0.6)
    generation.save_pretrained(own)
    train(healing(prepared, own, steps=2, stop_at=1), tmp_path / "run")
    (own / "generation_config.json").unlink()
    train(healing(prepared, own, steps=2), tmp_path / "run", resume=True)
    healed = LPAForCausalLM.from_pretrained(tmp_path / "run/final")
    assert healed.config.eos_token_id == healed.generation_config.eos_token_id == [0, 7]
    assert healed.generation_config.pad_token_id == 0
    assert healed.generation_config.temperature == 0.6


def test_a_generation_config_that_cannot_be_saved_is_refused_before_training(
    prepared, source, tmp_path
):
    own = tmp_path / "source"
    shutil.copytree(source, own)
    fields = {"do_sample": False, "temperature": 0.6}
    (own / "generation_config.json").write_text(json.dumps(fields))
    with pytest.raises(
        UserError, match=r"model.from .*: its generation_config.json: .*temperature"
    ):
        healing_trainer(prepared, own)


def test_factors_alone_have_optimizer_states(prepared, source):
    trainer = healing_trainer(prepared, source, optim={"trainable": "factors"})
    pairs = [module for module in trainer.model.modules() if isinstance(module, LowRankLinear)]
    expected = {parameter for pair in pairs for parameter in pair.parameters()}
    stepped = {
        parameter
        for member in trainer.optimizers.members
        for group in member.param_groups
        for parameter in group["params"]
    }
    assert stepped == expected
    whole = plan_run(healing(prepared, source)).memory_bytes_per_device
    part = plan_run(
        healing(prepared, source, optim={"trainable": "factors"})
    ).memory_bytes_per_device
    numbers = sum(parameter.numel() for parameter in expected)
    assert part["optimizer"] == 8 * numbers < whole["optimizer"]
    assert part["weights"] == whole["weights"]


@pytest.mark.parametrize("trained", ["all", "factors"])
def test_resuming_changes_no_bit_and_needs_no_source(prepared, source, tmp_path, trained):
    own = tmp_path / "source"
    shutil.copytree(source, own)
    optim = {"trainable": trained}
    train(healing(prepared, own, steps=6, optim=optim), tmp_path / "straight")
    train(healing(prepared, own, steps=6, optim=optim, stop_at=3), tmp_path / "stopped")
    shutil.rmtree(own)
    train(healing(prepared, own, steps=6, optim=optim), tmp_path / "stopped", resume=True)
    assert_same_weights(tmp_path / "stopped", tmp_path / "straight")


def test_another_source_is_another_run(prepared, source, tmp_path):
    train(healing(prepared, source, steps=4, stop_at=2), tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(source, other)
    with pytest.raises(UserError, match=r"model.from was .*final, now .*other"):
        train(healing(prepared, other, steps=4), tmp_path / "run", resume=True)


def test_every_layout_starts_and_trains_as_one_process_does(run_ranks, prepared, source, tmp_path):
    """Shards, and tensors split, of which only the factors train."""
    torch.set_num_threads(1)
    fields = {"model": {**NO_MODEL, "from_": str(source)}, "optim": {"trainable": "factors"}}
    trainer = small_trainer(prepared, steps=3, **fields)
    losses = [trainer.train_step().loss for _ in range(3)]
    results = run_ranks(
        *(2, "layouts.py", prepared, "[[1, 2, 1], [1, 1, 2]]", 3),
        *(json.dumps(fields), tmp_path / "results.json"),
    )
    for result in results:
        # Sums over shards are taken in another order: float32 rounding.
        assert result["losses"] == pytest.approx(losses, rel=2e-4)
        for name, parameter in trainer.model.named_parameters():
            norm = parameter.detach().double().norm().item()
            assert result["norms"][name] == pytest.approx(norm, rel=2e-3, abs=1e-6), name


def test_the_context_is_that_of_the_source(prepared, run, tmp_path):
    """Also of a run that is resumed where the source is gone."""
    own = tmp_path / "source"
    shutil.copytree(run, own)
    settings = {"steps": 4, "batch_size": 4, "device": "cpu", "eval_tokens": 500}

    def config(**changes) -> RunConfig:
        return RunConfig.from_dict(
            {
                "data": {"path": str(prepared)},
                "model": {"from": str(own)},
                "train": settings | changes,
            }
        )

    assert plan_run(config()).tokens_per_step == 4 * 32
    train(config(tokens=500, stop_at=2), tmp_path / "run")
    assert RunConfig.load(tmp_path / "run" / "config.yaml").data.seq_len == 32
    shutil.rmtree(own)
    result = train(config(tokens=500), tmp_path / "run", resume=True)
    assert result.tokens == 512


def test_a_long_context_is_not_taken_whole(tmp_path):
    LPAConfig(max_position_embeddings=4096, architectures=["LPAForCausalLM"]).save_pretrained(
        tmp_path
    )
    sections = {"data": {"path": "data"}, "model": {"from": str(tmp_path)}}
    assert with_source_seq_len(RunConfig.from_dict(sections)).data.seq_len == 512


def test_what_decides_the_architecture_stands_alone(prepared, source):
    with pytest.raises(UserError, match=r"model.rank: got 8; expected nothing beside model.from"):
        small_config(prepared, model={**NO_MODEL, "from_": source, "rank": 8})


def test_directories_that_a_run_cannot_start_from(prepared, source, tmp_path):
    with pytest.raises(UserError, match=r"model.from .*absent: no such directory; expected a run"):
        healing_trainer(prepared, tmp_path / "absent")
    with pytest.raises(UserError, match=r"is a GGUF file; .*lpa convert factorize .*\.gguf --out"):
        healing_trainer(prepared, tmp_path / "model.gguf")
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    llama.save_pretrained(tmp_path / "llama")
    with pytest.raises(
        UserError, match=r"is a LlamaForCausalLM; expected an LPAForCausalLM.*lpa.load"
    ):
        healing_trainer(prepared, tmp_path / "llama")
    other = tmp_path / "other"
    shutil.copytree(source, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "<|other|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"model.from .*: its tokenizer is not that of the data"):
        healing_trainer(prepared, other)
    (other / "tokenizer.json").unlink()
    (other / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model.from .*: model.safetensors is damaged"):
        healing_trainer(prepared, other)
    (other / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.from .*: has no model.safetensors"):
        healing_trainer(prepared, other)


def test_a_context_beyond_the_positions(prepared, source, lpa, tmp_path):
    finished = lpa(
        *("train", "--data.path", prepared, "--data.seq_len", 64, "--model.from", source),
        *("--out", tmp_path / "run"),
    )
    assert finished.code == 2
    assert "data.seq_len: got 64; expected at most the 32 positions" in finished.stderr
    assert not (tmp_path / "run").exists()


def test_factors_of_a_dense_model(prepared):
    with pytest.raises(UserError, match=r"optim.trainable: got factors; the model has no low-rank"):
        small_trainer(prepared, model={"placement": "none"}, optim={"trainable": "factors"})


def test_a_source_without_an_end_gets_that_of_the_data(prepared, tmp_path):
    """Or generation with the trained model would never stop."""
    source = tmp_path / "source"
    small_model(vocab_size=300).save_pretrained(source)
    assert json.loads((source / "config.json").read_text()).get("eos_token_id") is None
    train(healing(prepared, source, steps=1), tmp_path / "run")
    trained = LPAForCausalLM.from_pretrained(tmp_path / "run/final")
    end = Manifest.load(prepared).eos_token_id
    assert trained.config.eos_token_id == trained.generation_config.eos_token_id == end
    assert trained.generation_config.pad_token_id == end


def test_a_plan_refuses_a_source_that_the_run_would_refuse(prepared, source, tmp_path):
    config = healing(prepared, source)
    config.data.seq_len = 4096
    small_model(vocab_size=200).save_pretrained(tmp_path / "few")
    for run_config, message in (
        (config, r"data\.seq_len: got 4096; expected at most the"),
        (healing(prepared, tmp_path / "few"), "has 200 tokens and the data 300"),
    ):
        with pytest.raises(UserError, match=message):
            plan_run(run_config)
        with pytest.raises(UserError, match=message):
            train(run_config, tmp_path / "run")
