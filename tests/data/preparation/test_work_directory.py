"""Prepared data that is replaced while its process is killed."""

import os
import shutil
from contextlib import contextmanager

import pytest

from lpa.data import Manifest, load_split_tokens, load_tokenizer, prepare
from lpa.errors import UserError
from lpa.storage import outputs as outputs_module


@contextmanager
def killed_after(number):
    """A process that is killed after so many renames of what is replaced, or before the old is deleted."""
    remove = shutil.rmtree

    def rename_some(renames):
        nonlocal number
        for source, target in renames:
            if number == 0:
                raise KeyboardInterrupt
            os.replace(source, target)
            number -= 1

    def remove_others(path, **options):
        if path.name.endswith("old") and path.is_dir():
            raise KeyboardInterrupt
        remove(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs_module, "_rename_all", rename_some)
        patch.setattr(shutil, "rmtree", remove_others)
        yield


# How many renames a replacement is: of the directory, or of each of its five entries, old and new.
@pytest.mark.parametrize(("place", "renames"), [("beside", 2), ("in place", 10)])
@pytest.mark.parametrize("next_command", ["the same", "with bad input", "without --overwrite"])
def test_a_kill_while_data_is_replaced_loses_nothing(
    tmp_path, lines, tokenizer, monkeypatch, place, renames, next_command
):
    (tmp_path / "bad.jsonl").write_text("null")
    options = {"tokenizer": tokenizer, "boundary": "line"}
    expected = prepare([lines], tmp_path / "fresh", **options)
    for number in range(renames + 1):
        out = tmp_path / str(number) / "out"
        old = prepare([lines], out, tokenizer=tokenizer)
        if place == "in place":
            monkeypatch.chdir(out)
        with killed_after(number), pytest.raises(KeyboardInterrupt):
            prepare([lines], out, overwrite=True, **options)
        if next_command == "the same":
            assert prepare([lines], out, overwrite=True, **options) == expected
            assert [path.name for path in out.parent.iterdir()] == ["out"]
            assert not [path for path in out.glob(".lpa.*") if path.is_dir()]
        elif next_command == "with bad input":
            with pytest.raises(UserError, match="cannot be read"):
                prepare([tmp_path / "bad.jsonl"], out, overwrite=True, **options)
        else:
            with pytest.raises(UserError, match="already exists"):
                prepare([lines], out, **options)
        is_new = next_command == "the same" or number == renames
        assert Manifest.load(out) == (expected if is_new else old)
        for name, split in Manifest.load(out).splits.items():
            assert len(load_split_tokens(out, name)) == split.tokens
        load_tokenizer(out / "tokenizer")


def test_a_tokenizer_with_several_chat_templates_resumes(tmp_path, lines, tokenizer):
    """They are files in a directory of their own."""
    several = load_tokenizer(tokenizer)
    several.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    several.save_pretrained(tmp_path / "several")
    options = {"tokenizer": tmp_path / "several", "boundary": "line"}

    def stop(what, done, total):
        if what == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([lines], tmp_path / "out", **options, on_progress=stop)
    assert (tmp_path / ".out.partial" / "tokenizer").is_dir()
    prepare([lines], tmp_path / "out", **options)
    assert load_tokenizer(tmp_path / "out" / "tokenizer").chat_template == several.chat_template
