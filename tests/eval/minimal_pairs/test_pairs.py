import json

import pytest

from lpa.data.manifest import Manifest
from lpa.data.stats import decode_documents
from lpa.errors import UserError
from lpa.eval.minimal_pairs.pairs import pairs_from_data, read_pairs
from lpa.eval.minimal_pairs.rules import MinimalPair, pairs_from_text


def test_prepared_data_and_its_text_give_the_same_pairs(prepared, tmp_path):
    split = Manifest.load(prepared).held_out_split
    documents = list(decode_documents(prepared, split))
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    made = [pair for text in documents for pair in pairs_from_text(text)]
    assert list(pairs_from_data(prepared, None)) == list(pairs_from_data(path, None)) == made
    assert made


def test_a_text_has_no_splits(tmp_path):
    (tmp_path / "text.txt").write_text("He was here and there.")
    with pytest.raises(UserError, match="not a prepared data directory"):
        list(pairs_from_data(tmp_path / "text.txt", "test"))


def test_a_line_of_a_file_of_pairs_may_hold_other_line_separators(tmp_path):
    pairs = [
        MinimalPair("agreement", f"He was\u2028{here} here.", f"He were\u2028{here} here.")
        for here in ("\x85now", "not")
    ]
    lines = [
        json.dumps(
            {"UID": p.phenomenon, "sentence_good": p.good, "sentence_bad": p.bad},
            ensure_ascii=False,
        )
        for p in pairs
    ]
    (tmp_path / "pairs.jsonl").write_text("\r\n".join(lines) + "\n\n", encoding="utf-8")
    assert list(read_pairs(tmp_path / "pairs.jsonl")) == pairs
