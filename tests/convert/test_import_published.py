"""Checkpoints of the published code: real golden ones, and their shapes in every placement."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from lpa.convert.import_published import import_published, rename_tensors
from lpa.errors import UserError
from lpa.model import LPAConfig, LPAForCausalLM
from lpa.model.configuration_lpa import PLACEMENTS

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "rank": 8,
    "ffn_rank": 12,
    "lm_head_bias": True,
}


@pytest.mark.parametrize("setting", [1, 2])
def test_golden_vectors(shared, setting):
    path = shared / "golden" / f"setting{setting}.safetensors"
    golden = load_file(path)
    model = import_published(path, setting, num_attention_heads=4, seq_len=16).eval()
    input_ids = golden["input_ids"].long()
    output = model(input_ids, labels=input_ids)
    output.loss.backward()
    grad_norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    torch.testing.assert_close(output.logits, golden["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, golden["loss"].squeeze(), atol=1e-5, rtol=0)
    torch.testing.assert_close(grad_norm, golden["grad_norm"].squeeze(), atol=0, rtol=1e-4)


# Ours -> the published name, written down apart from the rules under test.
PUBLISHED = {
    1: {
        "model.embed_tokens": "lpa.token_embedding",
        "model.embed_positions": "lpa.positional_embedding",
        "lm_head": "lpa.fc",
        "model.layers.": "lpa.transformer_blocks.",
        "self_attn.q_proj": "attention.query_proj",
        "self_attn.k_proj": "attention.key_proj",
        "self_attn.v_proj": "attention.value_proj",
        "self_attn.o_proj": "attention.out_proj",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "mlp.fc1.down": "fc.0",
        "mlp.fc1.up": "fc.1",
        "mlp.fc2.down": "fc.3",
        "mlp.fc2.up": "fc.4",
        "mlp.fc1": "fc.0",
        "mlp.fc2": "fc.2",
        ".down": ".0",
        ".up": ".1",
    },
    2: {
        "model.embed_tokens": "lpa.token_embedding",
        "model.norm": "lpa.norm",
        "lm_head": "fc",
        "model.layers.": "lpa.transformer_blocks.",
        "self_attn.": "attention.",
        "mlp.": "ffn.",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        ".down.": ".0.",
        ".up.": ".1.",
    },
}


def published_name(name: str, setting: int) -> str:
    for ours, theirs in PUBLISHED[setting].items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("setting", [1, 2])
def test_every_placement_round_trips(tmp_path, setting, placement):
    decoder_type = {1: "paper", 2: "llama"}[setting]
    model = LPAForCausalLM(
        LPAConfig(**SIZES, decoder_type=decoder_type, placement=placement)
    ).eval()
    weights = {published_name(name, setting): p for name, p in model.state_dict().items()}
    path = tmp_path / "published.safetensors"
    save_file(weights, path)
    loaded = import_published(path, setting, num_attention_heads=4, seq_len=16).eval()
    assert loaded.config.placement == placement
    tokens = torch.randint(61, (2, 16))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_what_is_missing_left_over_or_misshapen_is_named(tmp_path):
    model = LPAForCausalLM(LPAConfig(**SIZES))
    weights = {published_name(name, 2): p for name, p in model.state_dict().items()}
    path = tmp_path / "published.safetensors"

    def refused(changed: dict, message: str) -> None:
        save_file(changed, path)
        with pytest.raises(UserError) as error:
            import_published(path, 2, num_attention_heads=4)
        assert message in str(error.value)

    one = "lpa.transformer_blocks.1.ffn.up_proj.weight"
    refused({n: t for n, t in weights.items() if n != one}, "missing model.layers.1.mlp.up_proj")
    refused(weights | {"lpa.extra": torch.zeros(1)}, "unexpected tensor lpa.extra")
    refused(
        weights | {"lpa.transformer_blocks.1.ffn.up_proj.bias": torch.zeros(80)},
        "left over model.layers.1.mlp.up_proj.bias",
    )
    refused(weights | {one: torch.zeros(81, 32)}, "up_proj.weight is (81, 32), not (80, 32)")
    save_file(weights, path)
    with pytest.raises(UserError, match="--num-attention-heads: got 5; expected a divisor of 32"):
        import_published(path, 2, num_attention_heads=5)


def test_learned_positions_are_as_many_as_the_checkpoint_has(tmp_path):
    model = LPAForCausalLM(LPAConfig(**SIZES | {"decoder_type": "paper"}))
    positions = model.config.max_position_embeddings
    path = tmp_path / "published.safetensors"
    save_file({published_name(n, 1): p.detach() for n, p in model.state_dict().items()}, path)
    for given in (None, positions):
        loaded = import_published(path, 1, num_attention_heads=4, seq_len=given)
        assert loaded.config.max_position_embeddings == positions
    with pytest.raises(UserError, match=f"^--seq-len: got 5; expected {positions}, the learned"):
        import_published(path, 1, num_attention_heads=4, seq_len=5)


EMBEDDING = "lpa.token_embedding.weight"
UP = "lpa.transformer_blocks.{}.ffn.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.clear() or w.update({"lpa.norm.weight": torch.ones(1)}), "has no .*embed_tok"),
        (lambda w: w.update({EMBEDDING: w[EMBEDDING][0]}), r"embed_tokens.* 1 dimension"),
        (lambda w: w.update({EMBEDDING: w[EMBEDDING][:0]}), "vocab_size: got 0"),
        (lambda w: w.update({UP.format(0): w[UP.format(0)][0]}), r"up_proj.weight is \(32,\)"),
        (lambda w: w.update({UP.format(0): w[UP.format(0)].int()}), r"up_proj.*torch\.int32"),
        (lambda w: w.update({UP.format(10**9): torch.zeros(1)}), "layers.*1000000000"),
        (lambda w: w.update({UP.format(7): torch.zeros(1)}), "layers.*7"),
        (lambda w: w.update({UP.format(0)[4:]: torch.zeros(1)}), "up_proj.weight.* twice"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, change, message):
    model = LPAForCausalLM(LPAConfig(**SIZES))
    weights = {published_name(name, 2): p.detach() for name, p in model.state_dict().items()}
    change(weights)
    path = tmp_path / "published.safetensors"
    save_file(weights, path)
    with pytest.raises(UserError, match=rf"^checkpoint {path}: .*{message}"):
        import_published(path, 2, num_attention_heads=4)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, pickle.dumps({"lpa.norm.weight": 1})])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "published.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^checkpoint {path}: is not a safetensors file"):
        import_published(path, 2, num_attention_heads=4)


def test_the_constants_of_rope_are_no_weights():
    assert rename_tensors({"lpa.rotary_emb.inv_freq": torch.zeros(4)}, 2) == {}


def test_the_command_line_writes_a_hugging_face_directory(lpa, shared, tmp_path):
    golden = shared / "golden" / "setting1.safetensors"
    finished = lpa(
        *("convert", "import-published", golden, "--setting", 1, "--num-attention-heads", 4),
        *("--out", tmp_path / "model", "--json"),
    )
    assert finished.code == 0, finished.stderr
    assert finished.json == {"parameters": 19405, "placement": "attention"}
    model = LPAForCausalLM.from_pretrained(tmp_path / "model")
    tensors = load_file(golden)
    logits = model(tensors["input_ids"].long()).logits
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-5, rtol=0)
