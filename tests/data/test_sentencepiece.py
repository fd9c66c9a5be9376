import json
import re
import shutil
from itertools import islice

import pytest
from transformers import AutoTokenizer

from lpa.data import bundled_corpus, load_split_tokens, load_tokenizer, prepare, read_documents
from lpa.data.document_limits import document_bos_token
from lpa.data.text_encoder import TextEncoder
from lpa.errors import UserError

LLAMA = {
    "normalization_rule_name": "identity",
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
    "split_digits": True,
}
KINDS = {
    "bpe as of Llama": {"model_type": "bpe", **LLAMA},
    "bpe": {"model_type": "bpe"},
    "unigram as of Gemma": {"model_type": "unigram", **LLAMA, "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "pad_id": 3},
    "its own symbols": {
        "model_type": "bpe",
        **LLAMA,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<turn>", "\n\n"],
    },
}


@pytest.fixture(scope="module")
def documents():
    return list(islice(read_documents([bundled_corpus("validation")]), 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("models")
    texts = islice(read_documents([bundled_corpus("train")]), 8)
    lines = [line for text in texts for line in text.splitlines() if len(line) < 4000]

    def train(**options):
        path = folder / f"{len(list(folder.iterdir()))}"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(path),
            vocab_size=900,
            minloglevel=2,
            num_threads=1,
            **options,
        )
        return path.with_suffix(".model")

    return train


@pytest.mark.parametrize("kind", KINDS)
def test_whole_documents_encode_to_the_ids_of_sentencepiece(model, documents, kind):
    import sentencepiece

    path = model(**KINDS[kind])
    original = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(path)
    assert tokenizer.eos_token_id == original.eos_id()
    assert tokenizer.bos_token_id == original.bos_id()
    encoder = TextEncoder.of(tokenizer)
    for text in [
        *documents,
        "one <turn> two<turn>\n",
        "😀\0 x",
        "",
        "a</s> <s>b </s><unk>",
        "</s>",
    ]:
        if "<turn>" in text and kind != "its own symbols":
            continue
        ids = encoder.encode(text)
        assert ids == original.encode(text)
        assert tokenizer.eos_token_id not in ids
        if original.unk_id() not in ids:
            assert tokenizer.decode(ids) == original.decode(ids)


def test_bytes_come_back_where_the_model_has_them(model, documents):
    tokenizer = load_tokenizer(model(**KINDS["bpe as of Llama"]))
    for text in [*documents, "naïve 😀 한\0\r\n  x"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_model_or_its_directory_prepares(model, documents, tmp_path):
    path = model(**KINDS["bpe as of Llama"])
    (tmp_path / "directory").mkdir()
    shutil.copy(path, tmp_path / "directory" / "tokenizer.model")
    (tmp_path / "text.txt").write_text(documents[0])
    for place in (path, tmp_path / "directory"):
        out = tmp_path / f"out-{place.name}"
        prepare([tmp_path / "text.txt"], out, tokenizer=place, validation_fraction=0)
        tokens = load_split_tokens(out, "train")
        tokenizer = load_tokenizer(out / "tokenizer")
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[:-1]) == documents[0]


def test_what_cannot_be_carried_over_is_refused(model, tmp_path):
    suffixed = model(model_type="bpe", treat_whitespace_as_suffix=True)
    with pytest.raises(UserError, match="to other ids than SentencePiece does"):
        load_tokenizer(suffixed)
    symbols = model(model_type="bpe", user_defined_symbols=["<turn>"])
    with pytest.raises(UserError, match="would encode 'one <turn> two<turn>' to other ids"):
        load_tokenizer(symbols)
    with pytest.raises(UserError, match="is neither a BPE nor a unigram model"):
        load_tokenizer(model(model_type="char"))
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken\.model: is not a SentencePiece model"):
        load_tokenizer(tmp_path / "broken.model")
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(model(**KINDS["bpe"], eos_id=-1))


@pytest.mark.parametrize("adds", [True, False])
def test_settings_beside_a_model_say_whether_a_text_begins_with_a_token(model, tmp_path, adds):
    """As in a directory of Llama's tokenizer that holds no tokenizer.json."""
    shutil.copy(model(), tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": adds}))
    tokenizer = load_tokenizer(tmp_path)
    assert document_bos_token(tokenizer) == (tokenizer.bos_token_id if adds else None)
    tokenizer.save_pretrained(tmp_path / "saved")
    begins = AutoTokenizer.from_pretrained(tmp_path / "saved")("text")["input_ids"][0]
    assert (begins == tokenizer.bos_token_id) is adds


def write_settings(directory, model, **files):
    """A directory as a tokenizer that runs SentencePiece saves itself: no tokenizer.json."""
    directory.mkdir()
    shutil.copy(model(**KINDS["bpe as of Llama"]), directory / "tokenizer.model")
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def token(content, special):
    return {
        "content": content,
        "special": special,
        **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False),
    }


@pytest.mark.parametrize(
    "files",
    [
        {
            "added_tokens": {"<|im_start|>": 900, "<|im_end|>": 901, "<tool>": 902},
            "special_tokens_map": {
                "eos_token": {"content": "<|im_end|>"},
                "additional_special_tokens": ["<|im_start|>"],
            },
            "tokenizer_config": {"chat_template": CHAT},
        },
        {
            "tokenizer_config": {
                "added_tokens_decoder": {
                    "1": token("<s>", True),
                    "901": token("<|im_end|>", True),
                    "900": token("<|im_start|>", True),
                    "902": token("<tool>", False),
                },
                "eos_token": "<|im_end|>",
                "pad_token": None,
                "chat_template": [{"name": "default", "template": CHAT}],
            },
        },
    ],
)
def test_tokens_roles_and_template_beside_a_model_are_kept(model, tmp_path, documents, files):
    write_settings(tmp_path / "tokenizer", model, **files)
    (tmp_path / "text.txt").write_text(documents[0] + "<tool>")
    prepare(
        [tmp_path / "text.txt"],
        tmp_path / "out",
        tokenizer=tmp_path / "tokenizer",
        validation_fraction=0,
    )
    assert load_split_tokens(tmp_path / "out", "train")[-2:].tolist() == [902, 901]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.eos_token == "<|im_end|>"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Go"}], return_dict=False, tokenize=True
    )
    assert (ids[0], ids[-1]) == (900, 901)
    encoded = TextEncoder.of(tokenizer).encode("<|im_start|><|im_end|>")
    assert not {900, 901} & set(encoded)  # they are special, so text does not become them


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<tool>": 950}}, "'<tool>' would have id 900; expected 950"),
        ({"tokenizer_config": {"eos_token": "<|end|>"}}, "its eos_token is '<|end|>'; expected"),
    ],
)
def test_settings_that_the_model_cannot_follow_are_refused(model, tmp_path, files, message):
    write_settings(tmp_path / "tokenizer", model, **files)
    with pytest.raises(UserError, match=re.escape(message)):
        load_tokenizer(tmp_path / "tokenizer")
