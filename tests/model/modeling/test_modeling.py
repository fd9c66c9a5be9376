import math

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import small_model
from transformers import LlamaConfig, LlamaForCausalLM

from lpa.convert.merge import merge_to_llama
from lpa.lowrank import LowRankLinear
from lpa.model import LPAForCausalLM
from lpa.model.configuration_lpa import PLACEMENTS


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_low_rank_modules_stand_where_the_placement_says(placement):
    model = small_model(placement=placement)
    low_rank = {n for n, m in model.named_modules() if isinstance(m, LowRankLinear)}
    attention = {f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"}
    ffn = {f"model.layers.{i}.mlp.{p}_proj" for i in range(2) for p in ("gate", "up", "down")}
    expected = {"none": set(), "attention": attention, "ffn": ffn, "all": attention | ffn}
    assert low_rank == expected[placement]


def test_a_position_sees_no_later_token(tokens):
    model = small_model()
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 97
    before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_factors_start_with_the_deviation_that_their_product_needs():
    model = small_model(hidden_size=256, intermediate_size=256, rank=64, initializer_range=0.02)
    pair = model.model.layers[0].self_attn.q_proj
    expected = math.sqrt(0.02 / math.sqrt(64))
    for factor in (pair.down, pair.up):
        assert factor.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert pair.to_dense().weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_loss_is_the_mean_cross_entropy_of_the_next_token(tokens):
    model = small_model(lm_head_bias=True)
    labels = tokens.clone()
    labels[0, 5:] = -100
    output = model(tokens, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].reshape(-1, 97), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(output.loss, expected)


def test_shifted_labels_score_the_last_position_too(tokens):
    model = small_model()
    targets = tokens.roll(-1, dims=1)
    output = model(tokens, shift_labels=targets)
    expected = F.cross_entropy(output.logits.reshape(-1, 97), targets.reshape(-1))
    torch.testing.assert_close(output.loss, expected)


def test_parts_of_a_batch_add_up_to_its_mean(tokens):
    model = small_model()
    labels = tokens.clone()
    labels[0, 3:] = -100
    whole = model(tokens, labels=labels).loss
    targets = (labels[:, 1:] != -100).sum()
    parts = [
        model(tokens[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=targets).loss
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_generation_with_a_cache_equals_generation_without(placement, tokens):
    model = small_model(placement=placement, num_key_value_heads=2)
    kwargs = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(tokens, use_cache=True, **kwargs)
    assert cached.shape == (2, 32)
    assert torch.equal(cached, model.generate(tokens, use_cache=False, **kwargs))


def test_cached_logits_equal_those_of_one_pass(tokens):
    model = small_model()
    whole = model(tokens).logits
    start = model(tokens[:, :8], use_cache=True)
    rest = model(tokens[:, 8:], past_key_values=start.past_key_values)
    torch.testing.assert_close(rest.logits, whole[:, 8:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"lm_head_bias": True}])
def test_save_and_load_give_the_same_model_back(tmp_path, tokens, fields):
    model = small_model(ranks={"v_proj": 4}, **fields)
    model.save_pretrained(tmp_path)
    loaded = LPAForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.ranks == {"v_proj": 4}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    assert torch.equal(model(tokens).logits, loaded(tokens).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_without_low_rank_it_is_llama(tokens, tied):
    """The baseline is the model that everyone knows, weight for weight."""
    model = small_model(placement="none", num_key_value_heads=2, tie_word_embeddings=tied)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps")
    fields = {name: getattr(model.config, name) for name in names + heads}
    llama = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    llama.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(model(tokens).logits, llama(tokens).logits)


def test_padding_on_the_left_changes_nothing(tokens):
    model = small_model()
    alone = model.generate(tokens[:1, 4:], max_new_tokens=8, do_sample=False, pad_token_id=0)
    padded = tokens.clone()
    padded[0, :4] = 0
    mask = torch.ones_like(padded)
    mask[0, :4] = 0
    both = model.generate(
        padded, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    assert torch.equal(both[0, 4:], alone[0])


@pytest.mark.parametrize("decoder_type", ["llama", "paper"])
def test_padding_on_the_left_changes_nothing_without_positions(tokens, decoder_type):
    model = small_model(decoder_type=decoder_type)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    alone = model(tokens[:1, 4:]).logits
    torch.testing.assert_close(
        model(tokens, attention_mask=mask).logits[:1, 4:], alone, rtol=1e-4, atol=1e-4
    )
    first = model(tokens[:, :-3], attention_mask=mask[:, :-3], use_cache=True)
    rest = model(tokens[:, -3:], attention_mask=mask, past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits[:1], alone[:, -3:], rtol=1e-4, atol=1e-4)


def test_rows_may_be_longer_than_their_learned_positions(tokens):
    """Packed documents, and prompts that are padded."""
    length = tokens.shape[1]
    model = small_model(decoder_type="paper", max_position_embeddings=length)
    packed = tokens[:2].reshape(1, -1)
    positions = torch.arange(length).repeat(2).unsqueeze(0)
    together = model(packed, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(
        together.reshape(2, length, -1), model(tokens[:2]).logits, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match=f"sequence length: got position {2 * length - 1}; "):
        model(packed)
    with pytest.raises(ValueError, match=f"got position {length}; expected at most {length - 1}"):
        model(packed, position_ids=positions + 1, use_cache=False)


@pytest.mark.parametrize("options", [{}, {"return_logits": False}], ids=str)
def test_gradients_of_gradients_are_those_of_the_merged_llama(options):
    """Through the norms, the rotation, SwiGLU and the loss that are ours."""
    model = small_model().train()
    llama = merge_to_llama(model).train()
    tokens = torch.randint(97, (4, 32), generator=torch.Generator().manual_seed(0))

    def second(m, **options):
        m.set_attn_implementation("eager")  # torch's fused attention has no second derivatives
        wanted = [m.model.embed_tokens.weight, m.lm_head.weight, m.model.norm.weight]
        loss = m(input_ids=tokens, labels=tokens, use_cache=False, **options).loss
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    for ours, theirs in zip(second(model, **options), second(llama), strict=True):
        # Sums of squares of rounding that differs, as products of factors are merged ones in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3 * theirs.abs().max().item())


def test_torch_func_takes_gradients_of_the_model():
    model = small_model().train()
    tokens = torch.randint(97, (4, 32), generator=torch.Generator().manual_seed(0))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values):
        call = {"input_ids": tokens, "labels": tokens, "use_cache": False}
        return torch.func.functional_call(model, values, kwargs=call).loss

    found = torch.func.grad(loss)(weights)
    loss(dict(model.named_parameters())).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
