import json
import math
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from helpers.damaged_models import MARK, foreign_code
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lpa.convert.gguf.gguf_export import export_gguf
from lpa.errors import UserError
from lpa.gguf_import import GGUFHeader, load_gguf, read_gguf_header

TEXT = "My fellow Americans: it's 1998,   and 12 of us  \n\n are strong!"


def test_what_was_written_is_read_back(merged, exported):
    model, tokenizer = load_gguf(exported)
    ids = AutoTokenizer.from_pretrained(merged)(TEXT, return_tensors="pt")["input_ids"]
    assert tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    assert tokenizer.decode(ids[0]) == TEXT
    expected = LlamaForCausalLM.from_pretrained(merged).eval()
    assert model.dtype == torch.float32
    assert model.config.num_key_value_heads == expected.config.num_key_value_heads
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_the_header_tells_the_size(merged, exported):
    model = LlamaForCausalLM.from_pretrained(merged)
    assert not model.config.tie_word_embeddings
    elements = sum(parameter.numel() for parameter in model.parameters())
    positions = model.config.max_position_embeddings
    assert read_gguf_header(exported) == GGUFHeader(elements, positions)


def test_a_tokenizer_that_splits_digits(merged, tmp_path):
    """As SmolLM's; blanks before a number are then split another way than by GPT-2's rule."""
    directory = tmp_path / "llama"
    shutil.copytree(merged, directory)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    rules = [{"type": "Digits", "individual_digits": True}, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": rules}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    export_gguf(directory, tmp_path / "model.gguf")
    _, read = load_gguf(tmp_path / "model.gguf")
    text = "    return 12345 +   67"
    assert read(text)["input_ids"] == AutoTokenizer.from_pretrained(directory)(text)["input_ids"]
    assert read.chat_template == "{{ messages[0]['content'] }}"
    splits = read.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [part for part, _ in splits][2:4] == ["Ġ", "1"]


def test_it_saves_and_loads_like_any_other(exported, tmp_path):
    model, _ = load_gguf(exported)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_what_is_no_gguf_file(exported, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"model .*absent.gguf: no such file"):
        load_gguf(tmp_path / "absent.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("GGML?")
    with pytest.raises(UserError, match=r"model .*text.gguf: is not a GGUF file"):
        load_gguf(text)
    half = tmp_path / "half.gguf"
    half.write_bytes(exported.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"model .*half.gguf: cannot be read as GGUF"):
        load_gguf(half)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"gguf: the package is not installed; pip install"):
        load_gguf(exported)


def test_an_architecture_that_transformers_does_not_read(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "odd.gguf"
    writer = GGUFWriter(path, "wavtokenizer-dec")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"odd.gguf: cannot be read as GGUF: .*not supported"):
        load_gguf(path)


def rewritten(source, path, fields=(), tensors=(), *, splitting=None, without=()):
    """A GGUF file with further fields and tensors, another rule to split text by, or without some keys."""
    gguf = pytest.importorskip("gguf")
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", *without):
            kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            is_replaced = splitting is not None and key == "tokenizer.ggml.pre"
            content = splitting if is_replaced else field.contents()
            writer.add_key_value(key, content, field.types[0], sub_type=kind)
    kinds = {
        str: gguf.GGUFValueType.STRING,
        float: gguf.GGUFValueType.FLOAT32,
        int: gguf.GGUFValueType.UINT32,
    }
    for name, value in dict(fields).items():
        writer.add_key_value(f"llama.rope.{name}", value, kinds[type(value)])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    for name, value in dict(tensors).items():
        writer.add_tensor(name, np.array(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_rope(merged, **scaling):
    """The merged model with scaled positions."""
    config = LlamaConfig.from_pretrained(merged)
    config.rope_parameters |= scaling
    return LlamaForCausalLM.from_pretrained(merged, config=config, dtype=torch.float32).eval()


def assert_same_logits(path, expected):
    model, _ = load_gguf(path)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, atol=1e-5, rtol=0)
    return model


LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, LINEAR),
        ({"scaling.factor": 4.0}, LINEAR),
        ({"scale_linear": 4.0}, LINEAR),
        ({"scaling.type": "none", "scaling.factor": 4.0}, {}),
        ({"scaling.type": "linear", "scaling.factor": 0.0}, {}),
        (
            {
                "scaling.type": "yarn",
                "scaling.factor": 4.0,
                "scaling.original_context_length": 8,
            },
            YARN,
        ),
    ],
)
def test_scaled_positions(fields, scaling, merged, exported, tmp_path):
    path = rewritten(exported, tmp_path / "model.gguf", fields)
    assert_same_logits(path, with_rope(merged, **scaling))


def test_positions_that_this_package_writes_scaled(merged, tmp_path):
    shutil.copytree(merged, tmp_path / "llama")
    config = LlamaConfig.from_pretrained(merged)
    config.rope_parameters |= LINEAR
    config.save_pretrained(tmp_path / "llama")
    export_gguf(tmp_path / "llama", tmp_path / "model.gguf", dtype="float32")
    assert_same_logits(tmp_path / "model.gguf", with_rope(merged, **LINEAR))


def llama3_divisors(config, factor):
    """As convert_hf_to_gguf.py of llama.cpp computes them."""
    divisors = []
    for index in range(0, config.head_dim, 2):
        length = 2 * math.pi * config.rope_parameters["rope_theta"] ** (index / config.head_dim)
        share = min(max((8192 / length - 1) / 3, 0), 1)
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def test_the_positions_of_llama_3(merged, exported, tmp_path):
    fields = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    fields |= {"original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    expected = with_rope(merged, rope_type="llama3", factor=32.0, **fields)
    tensors = {"rope_freqs.weight": llama3_divisors(expected.config, 32.0)}
    assert max(tensors["rope_freqs.weight"]) == 32
    slow = tmp_path / "slow.gguf"
    slow.write_bytes(number_after("llama.rope.freq_base", "<f", 500_000.0)(exported.read_bytes()))
    path = rewritten(slow, tmp_path / "model.gguf", tensors=tensors)
    assert_same_logits(path, expected)


def test_divisors_of_one_change_nothing(merged, exported, tmp_path):
    tensors = {"rope_freqs.weight": [1.0] * 4}
    path = rewritten(exported, tmp_path / "model.gguf", tensors=tensors)
    assert_same_logits(path, with_rope(merged))


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        (
            {"scaling.type": "longrope"},
            {},
            r"rope\.scaling\.type: got longrope; expected linear or",
        ),
        ({"scaling.type": "yarn"}, {}, r"rope\.scaling\.factor: got None, with which yarn is not"),
        (
            {"scaling.type": "yarn", "scaling.factor": 2.0, "scaling.attn_factor": 3.0},
            {},
            r"rope\.scaling\.attn_factor: got 3\.0, with which yarn is not read",
        ),
        ({}, {"rope_freqs.weight": [1.0, 1.0, 4.0, 8.0]}, r"rope_freqs\.weight: holds divisors"),
        ({}, {"rope_freqs.weight": [2.0, 2.0]}, r"rope_freqs\.weight: holds divisors"),
        ({}, {"blk.0.attn_q.bias": [1.0] * 32}, r"has blk\.0\.attn_q\.bias, for which Llama"),
        (
            {},
            {"blk.1.attn_q_norm.weight": [1.0] * 8},
            r"has blk\.1\.attn_q_norm\.weight, for which",
        ),
    ],
)
def test_what_transformers_would_leave_out(fields, tensors, message, exported, tmp_path):
    path = rewritten(exported, tmp_path / "model.gguf", fields, tensors)
    with pytest.raises(UserError, match=rf"model\.gguf: cannot be read as GGUF: {message}"):
        load_gguf(path)


def number_after(name: str, kind: str, value: float, skip: int = 4):
    """Another number in the place of that which follows a name, `skip` bytes later."""

    def damage(content: bytes) -> bytes:
        start = content.index(name.encode()) + len(name) + skip
        written = struct.pack(kind, value)
        return content[:start] + written + content[start + len(written) :]

    return damage


def metadata(name: str, value: int):
    return number_after(f"llama.{name}", "<I", value)


Q = "blk.0.attn_q.weight"
DAMAGES = {
    **{
        f"truncated to {size} bytes": lambda b, size=size: b[:size]
        for size in (4, 8, 12, 20, 40, 2000)
    },
    "truncated by one byte": lambda b: b[:-1],
    "truncated to half": lambda b: b[: len(b) // 2],
    "endless tensors": lambda b: b[:8] + struct.pack("<Q", 2**60) + b[16:],
    "endless metadata": lambda b: b[:16] + struct.pack("<Q", 2**60) + b[24:],
    "endless tokens": number_after("tokenizer.ggml.tokens", "<Q", 2**62, 8),
    "another version": lambda b: b[:4] + struct.pack("<I", 99) + b[8:],
    "no architecture": lambda b: b.replace(b"general.architecture", b"general.architectura"),
    "no layers": metadata("block_count", 0),
    "fewer layers": metadata("block_count", 1),
    "endless layers": metadata("block_count", 2**32 - 1),
    "no width": metadata("embedding_length", 0),
    "another width": metadata("embedding_length", 64),
    "endless width": metadata("embedding_length", 2**31),
    "no heads": metadata("attention.head_count", 0),
    "another number of heads": metadata("attention.head_count", 1),
    "no key heads": metadata("attention.head_count_kv", 0),
    "endless key heads": metadata("attention.head_count_kv", 2**31),
    "another FFN": metadata("feed_forward_length", 7),
    "endless FFN": metadata("feed_forward_length", 2**31),
    "another vocabulary": metadata("vocab_size", 7),
    "endless vocabulary": metadata("vocab_size", 2**31),
    "no positions": metadata("context_length", 0),
    "no rotation": metadata("rope.dimension_count", 0),
    "many dimensions": number_after(Q, "<I", 2**32 - 1, 0),
    "a huge shape": number_after(Q, "<Q", 2**40),
    "another type of tensor": number_after(Q, "<I", 99, 20),
    "a place beyond the end": number_after(Q, "<Q", 2**40, 24),
    "another layer": lambda b: b.replace(Q.encode(), b"blk.9.attn_q.weight"),
    "another name": lambda b: b.replace(b"output_norm.weight", b"outpXt_norm.weight"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage, exported, tmp_path):
    whole = exported.read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    with pytest.raises(UserError, match=r"^model .*model\.gguf: cannot be read as GGUF: .+$"):
        load_gguf(path)


def test_what_lies_beside_a_file_is_not_followed(exported, tmp_path):
    shutil.copy(exported, tmp_path / "model.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere"}')
    with pytest.raises(UserError, match=r"model\.gguf: beside it, adapter_config\.json"):
        load_gguf(tmp_path / "model.gguf")
    (tmp_path / "adapter_config.json").unlink()
    foreign_code(tmp_path)
    code = {"AutoTokenizer": ["modeling_evil.T", None], "AutoConfig": "configuration_evil.C"}
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": code, "model_type": "evil"}))
    with pytest.raises(UserError, match=r"model\.gguf: cannot be read as GGUF: .*custom code"):
        load_gguf(tmp_path / "model.gguf")
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", ["viking", "bloom", "default", "my-own", ""])
def test_a_rule_that_is_not_known_is_refused(exported, tmp_path, name):
    path = rewritten(exported, tmp_path / "model.gguf", splitting=name)
    with pytest.raises(UserError, match=rf"tokenizer\.ggml\.pre: got '{name}', .*expected one of"):
        load_gguf(path)


@pytest.mark.parametrize("name", ["exaone", "minerva-7b", "codeshell", "starcoder", "refact"])
def test_rules_that_split_digits_as_smollm_does(exported, tmp_path, name):
    _, tokenizer = load_gguf(rewritten(exported, tmp_path / "model.gguf", splitting=name))
    splits = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("hello   12 world")
    assert [part for part, _ in splits] == ["hello", "ĠĠĠ", "1", "2", "Ġworld"]


@pytest.mark.parametrize("name", ["llama-bpe", "tekken"])
def test_what_llama_cpp_does_by_the_name_of_a_rule(exported, tmp_path, name):
    """Words of the vocabulary stay whole, and a text begins with a token unless the file says otherwise."""
    said = rewritten(exported, tmp_path / "said.gguf", splitting=name)
    key = "tokenizer.ggml.add_bos_token"
    unsaid = rewritten(exported, tmp_path / "unsaid.gguf", splitting=name, without=[key])
    for path, begins in ((said, False), (unsaid, True)):
        _, tokenizer = load_gguf(path)
        assert tokenizer.backend_tokenizer.model.ignore_merges
        assert (tokenizer("text")["input_ids"][0] == tokenizer.bos_token_id) is begins
        tokenizer.save_pretrained(tmp_path / path.stem)
        again = AutoTokenizer.from_pretrained(tmp_path / path.stem)
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
