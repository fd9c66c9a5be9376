"""A tokenizer learns from all of the training text, or from a sample that spans it."""

import pytest

from lpa.data import load_tokenizer, prepare
from lpa.data.preparation import tokenizer_text as tokenizer_text_module


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A function that writes files of words, each of another alphabet, and prepares them."""
    monkeypatch.setattr(tokenizer_text_module, "SAMPLE_CHARACTERS", 60_000)
    sampled = []
    train = tokenizer_text_module.tokenizer_training_text

    def recorded(*arguments):
        sampled.extend(train(*arguments))
        return iter(sampled)

    monkeypatch.setattr("lpa.data.preparation.prepare.tokenizer_training_text", recorded)

    def prepare_files(sizes, sources):
        for name, (word, characters) in sizes.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{word}\n" * (characters // (len(word) + 1)))
        prepare(
            [tmp_path / source for source in sources],
            tmp_path / "out",
            vocab_size=300,
            validation_fraction=0,
        )
        text = "".join(sampled)
        return text, set(load_tokenizer(tmp_path / "out" / "tokenizer").get_vocab())

    return prepare_files


def test_every_file_of_a_directory_is_sampled(corpus):
    text, vocabulary = corpus(
        {f"{word}.txt": (word, 80_000) for word in ("abcd", "efgh", "ijkl")}, ["in"]
    )
    assert 20_000 < len(text) <= 60_000
    counts = [text.count(word) for word in ("abcd", "efgh", "ijkl")]
    assert max(counts) <= 2 * min(counts)  # the last to be halved has half as much
    assert {"abcd", "efgh", "ijkl"} <= vocabulary


def test_the_sample_spans_a_file_whose_parts_differ(corpus, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all.txt").write_text("abcd\n" * 40_000 + "efgh\n" * 40_000)
    text, vocabulary = corpus({}, ["in/all.txt"])
    assert text.count("efgh") == pytest.approx(text.count("abcd"), rel=0.2)
    assert {"abcd", "efgh"} <= vocabulary


def test_a_large_source_takes_what_small_ones_leave(corpus):
    notes = {f"note-{number}.txt": ("note", 500) for number in range(20)}
    sources = ["in/large.txt", *(f"in/{name}" for name in notes)]
    text, vocabulary = corpus({"large.txt": ("abcd", 400_000), **notes}, sources)
    assert text.count("note") == 20 * 100  # all of them
    assert text.count("abcd") * 5 > 20_000
    assert len(text) <= 60_000
    assert {"abcd", "note"} <= vocabulary


def test_sources_of_different_sizes_get_similar_shares(corpus):
    text, _ = corpus(
        {"large.txt": ("abcd", 800_000), "small.txt": ("efgh", 100_000)},
        ["in/large.txt", "in/small.txt"],
    )
    assert 0.4 < text.count("abcd") / text.count("efgh") < 2.5


def test_text_below_the_limit_is_taken_whole_and_in_order(corpus, tmp_path):
    text, _ = corpus({"a.txt": ("abcd", 20_000), "b.txt": ("efgh", 20_000)}, ["in"])
    assert text == "".join((tmp_path / "in" / name).read_text() for name in ("a.txt", "b.txt"))


def test_a_text_without_a_place_to_cut_it_at_is_sampled_too(corpus, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "genome.txt").write_text("ACGT" * 50_000)
    text, vocabulary = corpus({}, ["in/genome.txt"])
    assert 20_000 < len(text) <= 60_000
    assert "ACGT" in vocabulary
