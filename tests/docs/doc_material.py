"""Small files of the kinds that the documents speak of, which their blocks find in their folder."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import zstandard
from doc_markdown import ROOT

from lpa.data import bundled_corpus


def write_sources(folder: Path) -> None:
    """Texts in all formats, and the folders of the repository that commands name."""
    lines = gzip.decompress(bundled_corpus("test").read_bytes()).decode().splitlines()
    speeches = [json.loads(line)["text"] for line in lines]
    text = "\n\n".join(speeches)
    parts = {"train": text[:40_000], "valid": text[40_000:48_000], "test": text[48_000:60_000]}
    # The second lies beside the checkout.
    for texts in (folder, folder / "../shared/data/wikitext-2", folder / "wikitext-2"):
        texts.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            (texts / f"{name}.txt").write_text(part)
    (folder / "books").mkdir()
    (folder / "books" / "one.txt.zst").write_bytes(zstandard.compress(parts["train"].encode()))
    rows = "\n".join(json.dumps({"body": speech}) for speech in speeches[:40]) + "\n"
    (folder / "web.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "articles.jsonl").write_text(rows)
    (folder / "standardebooks.txt.gz").write_bytes(gzip.compress(parts["train"].encode()))
    for name in ("recipes", "benchmarks", "scripts"):
        (folder / name).symlink_to(ROOT / name)


class Material:
    """What a comment may name as given, made once, when first asked for."""

    def __init__(self, folder: Path, makers: dict[str, Callable[[Path], None]]) -> None:
        self._folder, self._makers = folder, makers

    def path(self, name: str) -> Path:
        """Where it is, made now if nobody asked before."""
        path = self._folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._makers[name](path)
        return path

    def give(self, name: str, folder: Path) -> None:
        """Put a copy into a page's folder, in place of what is there."""
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.path(name), target)


def write_llama(folder: Path, tokenizer: Path) -> None:
    """A dense Llama of a few thousand weights, with a tokenizer."""
    from helpers.small_models import small_llama
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    model = small_llama(
        len(loaded),
        hidden_size=32,
        intermediate_size=64,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=loaded.eos_token_id,
        bos_token_id=None,
    )
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
