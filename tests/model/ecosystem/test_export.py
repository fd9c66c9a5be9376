"""The model as a graph that other runtimes take over."""

import pytest
import torch
from helpers.small_models import small_model
from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

IDS = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decoder_type", ["llama", "paper"])
def test_an_exported_graph_computes_what_the_model_does(decoder_type):
    """With any number of rows and tokens; ONNX and other runtimes begin with such a graph."""
    model = small_model(decoder_type=decoder_type)
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", min=2, max=16)}
    exported = torch.export.export(
        model,
        (),
        {"input_ids": IDS, "use_cache": False},
        dynamic_shapes={"input_ids": sizes, "use_cache": None},
        strict=False,
    )
    for ids in (IDS, IDS[:1, :5].repeat(3, 1)):
        logits = exported.module()(input_ids=ids, use_cache=False).logits
        expected = model(ids, use_cache=False).logits
        # The graph adds up in another order, in float32.
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_the_export_of_transformers_for_executorch_generates_the_same():
    """With a static cache inside the graph, one token at a time."""
    model = small_model()
    model.generation_config.cache_implementation = "static"
    model.generation_config.use_cache = True
    exportable = TorchExportableModuleForDecoderOnlyLM(
        model, batch_size=1, max_cache_len=16, device="cpu"
    )
    exported = exportable.export(
        input_ids=torch.zeros((1, 1), dtype=torch.long), cache_position=torch.zeros(1).long()
    ).module()
    expected = model(IDS[:1], use_cache=False).logits
    for position in range(4):
        logits = exported(
            input_ids=IDS[:1, position : position + 1], cache_position=torch.tensor([position])
        )
        torch.testing.assert_close(logits[0, -1], expected[0, position], atol=1e-5, rtol=1e-4)
