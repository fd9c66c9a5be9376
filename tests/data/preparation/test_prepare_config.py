"""Sources that change while they are read."""

import pytest

from lpa.data import prepare
from lpa.errors import UserError

CHANGES = {
    "grows": lambda path: path.write_text(path.read_text() + "more text\n" * 50),
    "shrinks": lambda path: path.write_text(path.read_text()[: path.stat().st_size // 2]),
    "is written again": lambda path: path.write_text(
        path.read_text().replace("document", "Document")
    ),
    "vanishes": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", ["training the tokenizer", "encoding"])
@pytest.mark.parametrize(
    ("boundary", "weight", "options"),
    [
        ("file", 1, {}),
        ("line", 1, {"validation_fraction": 0.001}),
        ("line", 0.005, {"validation_fraction": 0}),
    ],
)
def test_a_source_that_changes_while_it_is_read_is_named(
    tmp_path, lines, change, stage, boundary, weight, options
):
    def change_source(what, done, total):
        if what == stage and not changed:
            changed.append(True)
            CHANGES[change](lines)

    changed = []
    source = f"{lines}#weight={weight}"
    expected = "no such file|changed while" if change == "vanishes" else "changed while it was read"
    with pytest.raises(UserError, match=rf"^{lines}: ({expected})"):
        prepare(
            [source],
            tmp_path / "out",
            vocab_size=300,
            boundary=boundary,
            on_progress=change_source,
            **options,
        )
    assert not (tmp_path / "out").exists()


def test_a_held_out_file_that_changes_while_it_is_read_is_named(tmp_path, lines, tokenizer):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("held out\n")

    def grow(what, done, total):
        held_out.write_text("held out and more\n")

    options = {"tokenizer": tokenizer, "validation": [held_out], "on_progress": grow}
    with pytest.raises(UserError, match=rf"^{held_out}: changed while it was read"):
        prepare([lines], tmp_path / "out", **options)


def test_the_manifest_describes_what_was_encoded(tmp_path, lines, tokenizer):
    def grow_at_the_end(what, done, total):
        if what == "writing shards":
            lines.write_text("other text")

    size = lines.stat().st_size
    manifest = prepare([lines], tmp_path / "out", tokenizer=tokenizer, on_progress=grow_at_the_end)
    assert manifest.source["sources"]["train"][0]["files"] == [[lines.name, size]]
