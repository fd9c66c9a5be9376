"""The model works wherever a decoder of transformers works: each claim with the real library."""

import peft
import pytest
import torch
from helpers.small_models import small_config, small_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from lpa.model import LPAConfig, LPAForCausalLM, LPAForSequenceClassification, LPAModel

DECODERS = ["llama", "paper"]


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decoder_type", DECODERS)
def test_auto_classes(tmp_path, decoder_type):
    small_model(decoder_type=decoder_type).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LPAConfig)
    assert type(AutoModel.from_pretrained(tmp_path)) is LPAModel
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LPAForCausalLM
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(classifier) is LPAForSequenceClassification


@pytest.mark.parametrize("decoder_type", DECODERS)
def test_saved_in_shards(tmp_path, tokens, decoder_type):
    model = small_model(decoder_type=decoder_type)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(
        LPAForCausalLM.from_pretrained(tmp_path)(tokens).logits, model(tokens).logits
    )


def test_saved_in_bfloat16_with_tied_weights(tmp_path, tokens):
    model = small_model(tie_word_embeddings=True)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "one")
    one = LPAForCausalLM.from_pretrained(tmp_path / "one", dtype="auto").eval()
    assert one.dtype == torch.bfloat16
    assert one.lm_head.weight.data_ptr() == one.model.embed_tokens.weight.data_ptr()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, one.get_parameter(name)), name
    # Outputs are compared between loaded models: RoPE's constants stay float32 in them, while `.to`
    # rounded those of the first.
    one.save_pretrained(tmp_path / "two")
    two = LPAForCausalLM.from_pretrained(tmp_path / "two", dtype="auto").eval()
    assert torch.equal(one(tokens).logits, two(tokens).logits)


GENERATION = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.7},
    "beam": {"do_sample": False, "num_beams": 3},
}


@pytest.mark.parametrize("decoder_type", DECODERS)
@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_equals_generation_without_a_cache(tokens, decoder_type, way, cache):
    model = small_model(decoder_type=decoder_type)
    kwargs = {**GENERATION[way], "max_new_tokens": 10, "pad_token_id": 0}
    torch.manual_seed(1)
    plain = model.generate(tokens, use_cache=False, **kwargs)
    torch.manual_seed(1)
    cached = model.generate(tokens, cache_implementation=cache, **kwargs)
    assert plain.shape == (2, 22)
    assert torch.equal(plain, cached)


@pytest.mark.parametrize("decoder_type", DECODERS)
@pytest.mark.parametrize("way", ["greedy", "beam"])
def test_each_row_of_a_left_padded_batch_equals_its_unpadded_run(tokens, decoder_type, way):
    model = small_model(decoder_type=decoder_type)
    kwargs = {**GENERATION[way], "max_new_tokens": 10, "pad_token_id": 0}
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[0, :5], mask[0, :5] = 0, 0
    both = model.generate(padded, attention_mask=mask, **kwargs)
    assert torch.equal(both[0, 5:], model.generate(tokens[:1, 5:], **kwargs)[0])
    assert torch.equal(both[1], model.generate(tokens[1:], **kwargs)[0])


@pytest.mark.parametrize("decoder_type", DECODERS)
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_attention_kernels_agree_with_the_eager_one(tokens, decoder_type, implementation):
    # flex attention on a CPU takes heads of at least 16 features. It would compile a kernel, which takes
    # long and is torch's own.
    model = small_model(decoder_type=decoder_type, head_dim=16)
    model.set_attn_implementation("eager")
    eager = model(tokens, use_cache=False).logits
    model.set_attn_implementation(implementation)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        other = model(tokens, use_cache=False).logits
    torch.testing.assert_close(other, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoder_type", DECODERS)
def test_gradient_checkpointing_gives_the_same_gradients(tokens, decoder_type):
    model = small_model(decoder_type=decoder_type).train()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    calls = []
    # Before the module runs: the second time it ends as soon as nothing more is needed.
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    hook.remove()
    assert len(calls) == 2  # once forward, once again for the backward pass
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], msg=name)


@pytest.mark.parametrize("decoder_type", DECODERS)
def test_decoder_layers_compile_without_graph_breaks(tokens, decoder_type):
    model = small_model(decoder_type=decoder_type).train()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for layer in model.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)  # a graph break is an error
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("decoder_type", DECODERS)
def test_the_trainer_of_transformers_trains_it(tmp_path, decoder_type):
    torch.manual_seed(0)
    model = LPAForCausalLM(small_config(decoder_type=decoder_type, initializer_range=0.02))
    rows = [{"input_ids": row, "labels": row} for row in torch.arange(64).view(1, 64).repeat(8, 1)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20
    # The first is that of a uniform guess: accumulated parts add up to a mean, not to a multiple.
    assert losses[0] == pytest.approx(torch.tensor(97.0).log().item(), rel=0.05)
    assert losses[-1] < losses[0] - 0.5


def test_peft_lora_attaches_to_both_factors_and_trains_alone(tokens):
    model = small_model()
    before = model(tokens).logits
    lora = peft.get_peft_model(
        model,
        peft.LoraConfig(r=2, target_modules=["q_proj.down", "q_proj.up"], task_type="CAUSAL_LM"),
    )
    trained = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2  # layers × factors × (A, B)
    torch.testing.assert_close(lora(input_ids=tokens).logits, before)
    lora.train()
    lora(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    assert all(p.grad is not None for p in lora.parameters() if p.requires_grad)


def test_a_text_generation_pipeline_runs(run):
    generate = pipeline("text-generation", model=str(run / "final"), device="cpu")
    [output] = generate("My fellow", max_new_tokens=8, do_sample=False)
    assert output["generated_text"].startswith("My fellow")
    assert len(output["generated_text"]) > len("My fellow")


@pytest.mark.parametrize("decoder_type", DECODERS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_sequences_do_not_see_each_other(tokens, decoder_type, implementation):
    model = small_model(decoder_type=decoder_type)
    model.set_attn_implementation(implementation)
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    logits = model(tokens, position_ids=positions).logits
    changed = tokens.clone()
    changed[:, :5] = (changed[:, :5] + 1) % 97
    other = model(changed, position_ids=positions).logits
    assert torch.equal(other[:, 5:], logits[:, 5:])
    assert not torch.allclose(other[:, :5], logits[:, :5])
    alone = model(tokens[:, 5:]).logits
    torch.testing.assert_close(logits[:, 5:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decoder_type", DECODERS)
def test_dropout_acts_in_training_alone(tokens, decoder_type):
    model = small_model(decoder_type=decoder_type, attention_dropout=0.3, resid_pdrop=0.3)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    losses = {model(tokens, labels=tokens, use_cache=False).loss.item() for _ in range(3)}
    assert len(losses) == 3


def test_learned_positions_end_with_a_clear_error(tokens):
    model = small_model(decoder_type="paper", max_position_embeddings=12)
    model(tokens)
    with pytest.raises(ValueError, match="sequence length: got position 12; expected at most 11"):
        model(torch.zeros(1, 13, dtype=torch.long))


def test_rope_scaling_changes_the_model_and_survives_saving(tmp_path, tokens):
    scaled = small_model(
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    )
    assert not torch.allclose(scaled(tokens).logits, small_model()(tokens).logits)
    scaled.save_pretrained(tmp_path)
    loaded = LPAForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens).logits, scaled(tokens).logits)


class TestSequenceClassification:
    LABELS = 3

    def model(self, decoder_type="llama", **fields) -> LPAForSequenceClassification:
        torch.manual_seed(0)
        config = small_config(decoder_type=decoder_type, pad_token_id=0, **fields)
        return LPAForSequenceClassification(config).eval()

    @pytest.mark.parametrize("decoder_type", DECODERS)
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, tokens, decoder_type, side):
        model = self.model(decoder_type, num_labels=self.LABELS)
        text = tokens[:1].clamp(min=1)
        if side == "right":
            padded = torch.cat([text, torch.zeros(1, 4, dtype=torch.long)], dim=1)
            mask = torch.tensor([[1] * 12 + [0] * 4])
            positions = None
        else:
            padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), text], dim=1)
            mask = torch.tensor([[0] * 4 + [1] * 12])
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(padded, attention_mask=mask, position_ids=positions).logits
        assert logits.shape == (1, self.LABELS)
        torch.testing.assert_close(logits, model(text).logits, atol=1e-5, rtol=1e-5)

    def test_the_mask_decides_where_text_may_hold_the_padding_token(self, tokens):
        model = self.model(num_labels=self.LABELS)
        text = tokens[:1].clone()
        text[0, -1] = 0  # an end of text that shares its token with padding
        with_mask = model(text, attention_mask=torch.ones_like(text)).logits
        without = model(text).logits
        assert not torch.allclose(with_mask, without)

    @pytest.mark.parametrize(
        ("fields", "labels", "loss"),
        [
            ({"num_labels": 3}, torch.tensor([0, 2]), torch.nn.functional.cross_entropy),
            (
                {"num_labels": 3, "problem_type": "multi_label_classification"},
                torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
                torch.nn.functional.binary_cross_entropy_with_logits,
            ),
            (
                {"num_labels": 1},
                torch.tensor([0.5, -1.0]),
                lambda logits, labels: torch.nn.functional.mse_loss(logits.squeeze(), labels),
            ),
        ],
    )
    def test_the_loss_of_each_problem(self, tokens, fields, labels, loss):
        model = self.model(**fields)
        output = model(tokens, attention_mask=torch.ones_like(tokens), labels=labels)
        torch.testing.assert_close(output.loss, loss(output.logits, labels))
