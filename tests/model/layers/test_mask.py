"""The mask of documents, which is transformers' own."""

import pytest
import torch
from transformers.masking_utils import create_causal_mask

from lpa.model import preset_config
from lpa.model.layers.mask import causal_mask

LENGTHS = torch.tensor([[5, 3, 8], [16, 0, 0]])


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("rows", [1, 2])
def test_documents_are_kept_apart_as_transformers_does(implementation, rows):
    config = preset_config("nano")
    config._attn_implementation = implementation
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS[:rows]])
    embeds = torch.zeros(2, 16, 8)
    with torch.compiler.set_stance("force_eager"):  # a mask of blocks is built by compiled code
        found = causal_mask(config, embeds, None, None, positions)
        expected = create_causal_mask(config, embeds, None, None, positions)
    if implementation == "flex_attention":
        found, expected = found.to_dense(), expected.to_dense()
    assert torch.equal(found, expected)


def test_nothing_is_made_where_no_positions_are_given():
    embeds = torch.zeros(2, 16, 8)
    assert causal_mask(preset_config("nano"), embeds, None, None, None) is None
