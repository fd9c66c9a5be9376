import json
import shutil

import numpy as np
import pytest
from helpers.small_models import save_small_bloom, small_llama
from helpers.tokenizer_kinds import word_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from lpa.data import bundled_corpus, prepare, read_documents
from lpa.data.tokenizer import load_tokenizer, tokenizer_hash
from lpa.errors import LPAWarning, UserError
from lpa.eval.compare import compare, verdict
from lpa.eval.perplexity import evaluate_perplexity


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, run):
    """The model of the run with its embeddings, which are its head too, exchanged and far too large."""
    out = tmp_path_factory.mktemp("spoiled") / "model"
    shutil.copytree(run / "final", out)
    weights = load_file(out / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name] = 30 * weights[name].roll(1, 0)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_a_model_is_not_distinguishable_from_itself(run, prepared):
    result = compare(run, run, prepared, device="cpu")
    assert (result.change, result.interval) == (0, (0, 0))
    assert result.verdict == "not distinguishable"
    assert "not distinguishable" in result.to_sentence("A", "B")


def test_a_spoiled_model_is_worse_and_pairing_makes_it_sure(run, spoiled, prepared):
    result = compare(spoiled, run, prepared, device="cpu")
    assert result.verdict == "worse"
    assert result.to_sentence("A", "B").startswith("A is worse than B (perplexity +")
    assert result.change == pytest.approx(result.a.perplexity / result.b.perplexity - 1)
    low, high = result.interval
    assert 0 < low < result.change < high
    mirrored = compare(run, spoiled, prepared, device="cpu")
    assert mirrored.verdict == "better"
    assert mirrored.change == pytest.approx(1 / (1 + result.change) - 1)


def test_models_of_different_tokenizers_are_compared_in_bits_per_byte(
    run, prepared, lpa, tiny, tmp_path
):
    texts = list(read_documents([bundled_corpus("validation")]))
    (tmp_path / "text.txt").write_text("\n".join(" ".join(text.split()[:400]) for text in texts))
    prepare([bundled_corpus("test")], tmp_path / "data", vocab_size=350)
    trained = lpa(
        *("train", "--data.path", tmp_path / "data", "--out", tmp_path / "run"),
        *("--train.steps", 2, *tiny),
    )
    assert trained.code == 0, trained.stderr
    with pytest.raises(UserError, match=r"different tokenizers.*FILE#boundary=line"):
        compare(run, tmp_path / "run", tmp_path / "text.txt", device="cpu")
    with open(tmp_path / "text.txt", "w") as file:
        for text in texts[:3]:
            words = text.split()
            file.writelines(" ".join(words[i : i + 20]) + "\n" for i in range(0, 800, 20))
    result = compare(run, tmp_path / "run", f"{tmp_path / 'text.txt'}#boundary=line", device="cpu")
    assert result.measure == "bits_per_byte"
    assert result.a.resampling_unit == "documents"
    assert result.change == pytest.approx(result.a.bits_per_byte / result.b.bits_per_byte - 1)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Sixty short documents."""
    words = next(read_documents([bundled_corpus("validation")])).split()
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text("".join(" ".join(words[i : i + 8]) + "\n" for i in range(0, 480, 8)))
    return f"{path}#boundary=line"


@pytest.fixture(scope="module")
def base_and_instruct(run, tmp_path_factory):
    """A model twice, with one tokenizer.json; the second ends a text with another of its special tokens."""
    base, instruct = (tmp_path_factory.mktemp("pair") / name for name in ("base", "instruct"))
    shutil.copytree(run / "final", base)
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(AddedToken("~", special=True))
    tokenizer.save_pretrained(base)
    shutil.copytree(base, instruct)
    path = instruct / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "~"}))
    return base, instruct


def test_each_model_is_scored_with_its_own_end_of_text_token(base_and_instruct, lines):
    tokenizers = [load_tokenizer(model) for model in base_and_instruct]
    assert len({tokenizer_hash(tokenizer) for tokenizer in tokenizers}) == 1
    assert len({tokenizer.eos_token_id for tokenizer in tokenizers}) == 2
    alone = [evaluate_perplexity(model, lines, device="cpu") for model in base_and_instruct]
    result = compare(*base_and_instruct, lines, device="cpu")
    assert [result.a.perplexity, result.b.perplexity] == [each.perplexity for each in alone]
    assert alone[0].perplexity != alone[1].perplexity
    assert result.measure == "bits_per_byte"
    assert result.change == pytest.approx(result.a.bits_per_byte / result.b.bits_per_byte - 1)


def test_prepared_data_has_one_end_of_text_token_for_both_models(base_and_instruct, tmp_path):
    base, instruct = base_and_instruct
    prepare([bundled_corpus("test")], tmp_path / "data", tokenizer=base)
    result = compare(base, instruct, tmp_path / "data", device="cpu")
    assert (result.measure, result.change) == ("perplexity", 0)


def test_the_context_is_that_of_the_model_that_states_one(run, prepared, tmp_path):
    bloom = save_small_bloom(run, tmp_path / "bloom")
    result = compare(run, bloom, prepared, device="cpu")
    assert (result.a.seq_len, result.b.seq_len) == (32, 32)
    with pytest.raises(UserError, match="--seq-len: got none"):
        compare(bloom, bloom, prepared, device="cpu")
    assert compare(bloom, bloom, prepared, seq_len=40, device="cpu").b.seq_len == 40


def test_too_little_text_is_refused(run, tmp_path):
    (tmp_path / "text.txt").write_text("Only a few words.")
    with pytest.raises(UserError, match="expected at least 10 to tell two models apart"):
        compare(run, run, tmp_path / "text.txt", device="cpu")


def test_no_verdict_over_unknown_tokens_of_one_of_two_tokenizers(tmp_path):
    (tmp_path / "lines.txt").write_text("the cat sat\n" * 40)
    lines = f"{tmp_path / 'lines.txt'}#boundary=line"
    texts = {"whole": ["the cat sat"], "other": ["sat the cat"], "poor": ["the cat"]}
    tokenizers = {name: word_tokenizer(*text) for name, text in texts.items()}
    model = small_llama(5)

    def compared(a, b):
        return compare(model, model, lines, tokenizer_a=tokenizers[a], tokenizer_b=tokenizers[b])

    assert compared("whole", "other").measure == "bits_per_byte"
    for a, b in (("whole", "poor"), ("poor", "whole")):
        with pytest.raises(
            UserError, match=r"40 of 160 tokens \(25\.00%\) of one are unknown ones"
        ):
            compared(a, b)
    with pytest.warns(LPAWarning, match="unknown ones"):
        assert compared("poor", "poor").change == 0


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ((-0.2, -0.1), "better"),
        ((0.1, 0.2), "worse"),
        ((-0.1, 0.2), "not distinguishable"),
        ((np.nan, np.nan), "not distinguishable"),
    ],
)
def test_the_verdict_is_what_the_interval_allows(between, expected):
    assert verdict(between) == expected
