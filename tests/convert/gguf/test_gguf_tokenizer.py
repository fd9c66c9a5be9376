"""Tokens of llama.cpp beside those of transformers, and what is refused because they would differ."""

import json
import random
from itertools import islice

import pytest
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lpa.convert.gguf.gguf_export import export_gguf
from lpa.data import bundled_corpus
from lpa.data.sources.documents import read_documents
from lpa.data.tokenizer import train_tokenizer
from lpa.errors import UserError

ROWS = 700  # of the embedding, more than there are tokens
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])

# What lines are put together from, to meet what splitting and merging may disagree about.
PIECES = [
    *("def f(x):", "    return x ** 2  # ok", "\tif a != b && c[0] <= 'd':", "{\"k\": [1, 2.5e-3]}"),
    *("我们的国家是强大的", "日本語のテキスト、です。", "한국어 문장", "नमस्ते दुनिया", "עברית שלום", "ไทยภาษา"),
    *("😀👍🏽👨‍👩‍👧", "❤️‍🔥", "🇩🇪", "\ufe0f", "é", "e\u0301", "ﬁ", "½", "Ⅳ", "²³", "٣٤٥", "１２３", "𝟘𝟙"),
    *("1984", "3.14159", "1,000,000", "0x1F", "12:34", "9" * 20, "\u00a01", "\u2009", "\u3000x"),
    *(" ", "  ", "   ", "     ", " " * 17, "\t", "\t\t ", "\r\n", "\n", "\n\n\n", "\u200b", "\ufeff"),
    *("I'm", "we'll", "they've", "it's", "can't", "'S", "'LL", "''s", "you’re", "O'Neil'd", "'", "\""),
    *("\u0085", "\x00", "\x07", "\x1b[31m", "\x7f", "\x0b", "\x0c", "\u2028", "\u202e", "\ufffd"),
    *("<|endoftext|>", "<|endoftext", "<s>", "</s>", "<tool>", "<tool", "[INST]", "##", "two words", "♥♥"),
    *("Fellow Americans", "UPPER lower Mixed", "a-b_c/d", "www.example.org?q=1&r=2", "...!?", "~`^|\\"),
]  # fmt: skip


def lines(count=10_000):
    """Half of it pieces joined at random, half of it parts of real speeches."""
    draw = random.Random(0)
    for _ in range(count // 2):
        yield "".join(draw.choices(PIECES, k=draw.randint(1, 12)))
    texts = read_documents([bundled_corpus("train")])
    sentences = (text[i : i + 90] for text in texts for i in range(0, len(text), 90))
    yield from islice(sentences, count - count // 2)


@pytest.fixture(scope="module")
def learned():
    """Merges of speeches and of the pieces, as a tokenizer's JSON."""
    texts = [*islice(lines(), 0, 5000, 5), *islice(lines(), 5000, 7000)]
    return train_tokenizer(iter(texts), 600).backend_tokenizer.to_str()


@pytest.fixture
def directory(learned, tmp_path):
    """Makes a stock Llama whose tokenizer was changed by a function, given the two libraries' objects."""

    def make(change=lambda tokenizer, backend: None, **config):
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer.from_str(learned)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
        change(tokenizer, tokenizer.backend_tokenizer)
        model = LlamaForCausalLM(
            LlamaConfig(
                **{
                    "vocab_size": ROWS,
                    "hidden_size": 32,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 1,
                    "bos_token_id": None,
                    "eos_token_id": tokenizer.eos_token_id,
                }
                | config
            )
        )
        model.save_pretrained(tmp_path / "llama")
        tokenizer.save_pretrained(tmp_path / "llama")
        return tmp_path / "llama"

    return make


def with_digits(tokenizer, backend):
    backend.pre_tokenizer = DIGITS


def with_added_tokens(tokenizer, backend):
    tokenizer.add_tokens(["<tool>", "two words", "♥", "##", "<|start|>", " " * 4, " " * 17])
    tokenizer.add_tokens([AddedToken("</s>", special=True), AddedToken("[INST]", special=True)])
    tokenizer.add_tokens([AddedToken("def f", normalized=False)])


def with_frame(tokenizer, backend):
    tokenizer.add_tokens([AddedToken("<s>", special=True)])
    bos, eos = backend.token_to_id("<s>"), backend.token_to_id("<|endoftext|>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<s> $A <|endoftext|>",
                special_tokens=[("<s>", bos), ("<|endoftext|>", eos)],
            ),
        ]
    )


def with_empty_rules(tokenizer, backend):
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Sequence([DIGITS])
    backend.decoder = decoders.Sequence([decoders.ByteLevel()])


ACCEPTED = {
    "as lpa prepare trains": [],
    "digits first": [with_digits],
    "added tokens": [with_added_tokens],
    "added tokens, digits first": [with_digits, with_added_tokens],
    "a frame of tokens": [with_frame],
    "a frame and added tokens": [with_frame, with_added_tokens],
    "rules within rules": [with_empty_rules],
}


def engine_of(path):
    llama_cpp = pytest.importorskip(
        "llama_cpp",
        reason="llama-cpp-python is not installed; pip install 'lpa[gguf]' builds it in some minutes",
    )
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_llama_cpp_makes_the_same_tokens_of_ten_thousand_lines(directory, kind, tmp_path):
    def change(tokenizer, backend):
        for step in ACCEPTED[kind]:
            step(tokenizer, backend)

    source = directory(change)
    export_gguf(source, tmp_path / "model.gguf")
    engine = engine_of(tmp_path / "model.gguf")
    backend = AutoTokenizer.from_pretrained(source).backend_tokenizer
    texts = list(lines())
    framed = [found.ids for found in backend.encode_batch(texts)]
    plain = [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]
    backend.encode_special_tokens = True  # text that looks like a special token is text
    literal = [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]
    assert literal != plain
    assert (framed != plain) == (with_frame in ACCEPTED[kind])
    for text, *expected in zip(texts, framed, plain, literal, strict=True):
        found = [
            engine.tokenize(text.encode(), add_bos=frame, special=special)
            for frame, special in ((True, True), (False, True), (False, False))
        ]
        assert found == expected, text


def test_types_and_keys_of_tokens(directory, tmp_path):
    """What the comparison above shows with llama.cpp, in the file itself."""
    from gguf import GGUFReader, TokenType

    def change(tokenizer, backend):
        with_frame(tokenizer, backend)
        with_added_tokens(tokenizer, backend)

    source = directory(change)
    tokenizer = AutoTokenizer.from_pretrained(source)
    export_gguf(source, tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    names = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert len(names) == len(set(names)) == ROWS
    found = {name: TokenType(kind) for name, kind in zip(names, kinds, strict=True)}
    for name in ("<s>", "</s>", "[INST]", "<|endoftext|>"):
        assert found[name] == TokenType.CONTROL, name
    for name in ("<tool>", "two words", "♥", "##", "<|start|>", " " * 4, "def f"):
        assert found[name] == TokenType.USER_DEFINED, name
    assert found["a"] == found["Ġthe"] == TokenType.NORMAL
    assert found[names[-1]] == TokenType.UNUSED
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.add_eos_token"].contents() is True
    assert fields["tokenizer.ggml.bos_token_id"].contents() == tokenizer.convert_tokens_to_ids(
        "<s>"
    )
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id


def test_unused_rows_have_names_that_no_token_has(directory, tmp_path):
    from gguf import GGUFReader

    source = directory(lambda tokenizer, _: tokenizer.add_tokens(["[unused650]", "[unused_3]"]))
    export_gguf(source, tmp_path / "model.gguf")
    names = GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert len(set(names)) == ROWS


def test_each_end_of_generation_and_each_chat_template_is_carried_over(directory, tmp_path):
    from gguf import GGUFReader

    def change(tokenizer, backend):
        tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}

    export_gguf(directory(change, eos_token_id=[0, 5, 7]), tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    ends = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot", "eom")]
    assert ends == [0, 5, 7]
    assert fields["tokenizer.chat_template"].contents() == "{{ 1 }}"
    assert fields["tokenizer.chat_template.tool_use"].contents() == "{{ 2 }}"


def token(name, **settings):
    return lambda tokenizer, backend: tokenizer.add_tokens([AddedToken(name, **settings)])


def tokens(*added):
    return lambda tokenizer, backend: tokenizer.add_tokens(list(added))


def rule(**rules):
    def change(tokenizer, backend):
        for name, value in rules.items():
            setattr(backend, name, value)

    return change


def framed_by(template):
    def change(tokenizer, backend):
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<|endoftext|>", 0)]
        )

    return change


REFUSED = {
    "normalizer": (rule(normalizer=normalizers.NFC()), "normalizes text by NFC"),
    "nested normalizer": (
        rule(normalizer=normalizers.Sequence([normalizers.Sequence([normalizers.Lowercase()])])),
        "normalizes text by Lowercase",
    ),
    "splitting by blanks": (rule(pre_tokenizer=pre_tokenizers.Whitespace()), "splits text by Whitespace"),
    "no splitting": (rule(pre_tokenizer=None), "splits text by nothing"),
    "prefix": (rule(pre_tokenizer=pre_tokenizers.ByteLevel()), "splits text by ByteLevel"),
    "no expression": (
        rule(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        "splits text by ByteLevel .*use_regex.*false",
    ),
    "another expression": (
        rule(
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), BYTE_LEVEL]
            )
        ),
        "splits text by Sequence",
    ),
    "runs of digits": (
        rule(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTE_LEVEL])),
        "splits text by Sequence",
    ),
    "decoder": (
        rule(decoder=decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])),
        "decodes by Sequence",
    ),
    "two before": (framed_by("<|endoftext|> <|endoftext|> $A"), "sets 2 tokens before a text"),
    "two after": (framed_by("$A <|endoftext|> <|endoftext|>"), "sets 2 tokens after a text"),
    "lstrip": (token("<mask>", lstrip=True), "token '<mask>' has lstrip"),
    "rstrip": (token("<mask>", rstrip=True), "token '<mask>' has rstrip"),
    "single word": (token("ing", single_word=True), "token 'ing' has single_word"),
    "control name": (token("<|im_end|>"), r"token '<\|im_end\|>', .* is not special"),
    "plain name": (token("<|start|>", special=True), r"token '<\|start\|>', .* is special"),
    "overlap": (tokens("abc", "cde"), "tokens 'abc' and 'cde' overlap"),
    "matched first": (
        tokens(AddedToken("b", normalized=False), "abc"),
        "token 'b' is matched before 'abc'",
    ),
    "too many": (tokens(*(f"<x{i}>" for i in range(200))), "has token .*rows up to 699"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_llama_cpp_would_do_otherwise_is_refused_by_name(directory, kind, tmp_path):
    change, message = REFUSED[kind]
    source = directory(change)
    with pytest.raises(UserError, match=rf"tokenizer .*tokenizer.json: .*{message}"):
        export_gguf(source, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


SETTINGS = {
    "continuing_subword_prefix": "##",
    "end_of_word_suffix": "</w>",
    "byte_fallback": True,
    "ignore_merges": True,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_merging_that_llama_cpp_does_not_have(directory, setting, tmp_path):
    source = directory()
    described = json.loads((source / "tokenizer.json").read_text())
    described["model"][setting] = SETTINGS[setting]
    described["model"]["merges"] = []  # with affixes the merges of others are of unknown tokens
    (source / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=f"has {setting} "):
        export_gguf(source, tmp_path / "model.gguf")


def test_a_vocabulary_without_every_byte(directory, tmp_path):
    source = directory()
    described = json.loads((source / "tokenizer.json").read_text())
    described["model"]["vocab"].pop("Ā")
    described["model"]["merges"] = []
    (source / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="has no token for 1 of 256 bytes"):
        export_gguf(source, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True)]
)
def test_a_llama_that_llama_cpp_would_compute_otherwise(directory, field, value, tmp_path):
    with pytest.raises(UserError, match=f"model .*: {field} {value}; expected"):
        export_gguf(directory(**{field: value}), tmp_path / "model.gguf")


def test_ends_that_a_file_cannot_hold(directory, tmp_path):
    with pytest.raises(UserError, match=r"eos_token_id \[0, 1, 2, 3\]; expected at most three"):
        export_gguf(directory(eos_token_id=[0, 1, 2, 3]), tmp_path / "model.gguf")
    with pytest.raises(UserError, match="eos_token_id 5; expected 0, the token that"):
        export_gguf(directory(with_frame, eos_token_id=5), tmp_path / "model.gguf")
