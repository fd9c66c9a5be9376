import json
import shutil

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

import lpa
from lpa.convert.gguf.gguf_export import export_gguf
from lpa.errors import UserError

PROMPTS = ["My fellow Americans,", "The state of our union is", "1998:  we're strong!\n\nThank"]


def test_the_file_holds_every_weight_and_the_sizes(merged, exported):
    from gguf import GGUFReader

    reader = GGUFReader(exported)
    config = json.loads((merged / "config.json").read_text())
    assert reader.fields["llama.block_count"].contents() == config["num_hidden_layers"]
    assert reader.fields["llama.vocab_size"].contents() == config["vocab_size"]
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == config["vocab_size"]
    model = LlamaForCausalLM.from_pretrained(merged)
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == model.num_parameters()


def test_llama_cpp_continues_as_transformers_does(merged, exported):
    llama_cpp = pytest.importorskip(
        "llama_cpp",
        reason="llama-cpp-python is not installed; pip install 'lpa[gguf]' builds it in some minutes",
    )
    engine = llama_cpp.Llama(str(exported), n_ctx=32, verbose=False, n_threads=1)
    model = LlamaForCausalLM.from_pretrained(merged)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert engine.tokenize(prompt.encode(), add_bos=False, special=False) == ids[0].tolist()
        new = 32 - ids.shape[1]
        expected = model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None)
        engine.reset()
        tokens = []
        for token in engine.generate(ids[0].tolist(), temp=0.0, repeat_penalty=1.0):
            tokens.append(token)
            if len(tokens) == new:
                break
        assert tokens == expected[0, ids.shape[1] :].tolist()


def test_half_precision_halves_the_matrices(merged, exported, tmp_path):
    size = export_gguf(merged, tmp_path / "half.gguf")
    assert size < 0.7 * exported.stat().st_size


def test_what_exists_is_spared(merged, tmp_path):
    out = tmp_path / "model.gguf"
    out.write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export_gguf(merged, out)
    with pytest.raises(UserError, match="is not a GGUF file"):
        export_gguf(merged, out, overwrite=True)
    assert out.read_text() == "mine"
    out.write_bytes(b"GGUF, an earlier one")
    export_gguf(merged, out, overwrite=True)
    assert out.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_model_that_is_no_llama_is_refused_with_the_way_there(run, tmp_path):
    with pytest.raises(UserError, match=r"model_type lpa; expected llama.*lpa convert merge"):
        export_gguf(run / "final", tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_kind_is_refused(merged, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((merged / name).read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="expected a byte-level BPE that splits as GPT-2"):
        export_gguf(tmp_path, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"null"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "x"}'),
        ("tokenizer.json", b'{"model": []}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
    ],
)
def test_a_damaged_model_is_refused_by_file(merged, tmp_path, file, content):
    model = tmp_path / "model"
    shutil.copytree(merged, model)
    (model / file).write_bytes(content)
    with pytest.raises(UserError, match=str(model)):
        export_gguf(model, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_command_line(lpa, merged, tmp_path):
    finished = lpa("convert", "gguf", merged, "--out", tmp_path / "model.gguf", "--json")
    assert finished.code == 0, finished.stderr
    assert finished.json["bytes"] == (tmp_path / "model.gguf").stat().st_size


def test_low_rank_pairs_in_a_llama_are_merged_first(merged, tmp_path):
    shutil.copytree(merged, tmp_path / "llama")
    model = LlamaForCausalLM.from_pretrained(merged)
    lpa.factorize(model, rank=4)
    model.save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match=r"has a quantization_config; .* lpa convert merge .*llama"):
        export_gguf(tmp_path / "llama", tmp_path / "model.gguf")
    lpa.merge(tmp_path / "llama", tmp_path / "merged")
    assert export_gguf(tmp_path / "merged", tmp_path / "model.gguf") > 0
