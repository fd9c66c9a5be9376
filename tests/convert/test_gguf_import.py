import json
import shutil
import sys

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from lpa.convert.gguf_export import export_gguf
from lpa.convert.gguf_import import load_gguf
from lpa.errors import UserError

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


def test_a_tokenizer_that_parts_digits(merged, tmp_path):
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
    with pytest.raises(UserError, match=r"odd.gguf: cannot be read as GGUF \(.*not supported"):
        load_gguf(path)
