"""Tokenizers are opened in one place, and documents encoded by one class, so that no setting slips in."""

import ast
from pathlib import Path

import lpa

SOURCE = Path(lpa.__file__).parent
# Where tokenizers are opened or made, and where they encode.
OPENS = {"data/tokenizer.py", "data/sentencepiece.py"}
ENCODES = {"data/text_encoder.py", "data/words.py", "data/sentencepiece.py"}


def uses():
    """Each attribute or name of a file that has to do with tokenizers, as (file, name)."""
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name | ast.Attribute):
                yield file, ast.unparse(node)
            elif isinstance(node, ast.Call):
                yield file, f"{ast.unparse(node.func)}()"


def files_that_use(*endings):
    return {file for file, name in uses() if name.endswith(endings)}


def test_tokenizers_are_opened_in_one_place():
    assert files_that_use("AutoTokenizer", "PreTrainedTokenizerFast") == OPENS
    assert files_that_use("Tokenizer.from_file", "Tokenizer.from_pretrained") == {
        "data/tokenizer.py"
    }
    assert files_that_use("Tokenizer.from_str", "Tokenizer.from_buffer") == set()


def test_documents_are_encoded_in_one_place():
    raw = ("backend.encode()", "backend_tokenizer.encode()", "encode_batch_fast()", "_batch()")
    raw = (*raw, "tokenizer.encode()", "tokenizer.encode_batch()")
    assert files_that_use(*raw) - {"data/units.py", "data/pieces.py", "eval/glue/encoding.py"} == (
        ENCODES
    )
    # It tells what a tokenizer puts before a text.
    assert files_that_use("tokenizer()", "tokenizers()") == {"eval/texts.py"}


def test_no_code_of_others_is_run_to_open_a_tokenizer():
    tree = ast.parse((SOURCE / "data/tokenizer.py").read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "AutoTokenizer.from_pretrained"
    ]
    assert calls
    for call in calls:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options["trust_remote_code"] == "False"
