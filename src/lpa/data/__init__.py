"""Documents in, tokens on disk, batches out.

The names load on first use: reading tokens needs neither the readers nor the tokenizers.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["TokenDataset", "load_split_tokens"],
        "manifest": ["Manifest"],
        "preparation.prepare": ["prepare"],
        "sources.documents": ["read_documents"],
        "sources.source": ["Source", "bundled_corpus"],
        "tokenizer": ["load_tokenizer"],
    },
)

if TYPE_CHECKING:
    from lpa.data.dataset import TokenDataset, load_split_tokens
    from lpa.data.manifest import Manifest
    from lpa.data.preparation.prepare import prepare
    from lpa.data.sources.documents import read_documents
    from lpa.data.sources.source import Source, bundled_corpus
    from lpa.data.tokenizer import load_tokenizer
