"""What a forward pass returns, beside the stock Llama that the model merges to."""

import pytest
import torch
from helpers.small_models import small_model

from lpa.convert.merge import merge_to_llama


@pytest.fixture(scope="module")
def models():
    model = small_model()
    return model, merge_to_llama(model)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("return_dict", [None, True, False])
@pytest.mark.parametrize("logits_to_keep", [0, 1, 3, torch.tensor([2, 5])], ids=str)
@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_of_the_merged_llama(
    models, tokens, training, with_labels, logits_to_keep, return_dict
):
    ours, llama = (model.train(training) for model in models)
    labels = tokens.masked_fill(tokens % 7 == 0, -100) if with_labels else None
    options = {"output_hidden_states": True, "return_dict": return_dict}
    found = ours(tokens, labels=labels, logits_to_keep=logits_to_keep, **options)
    # A stock model scores only the logits that it keeps, and fails where there are more labels.
    expected = llama(tokens, labels=labels, **options)
    logits = llama(tokens, logits_to_keep=logits_to_keep).logits
    if return_dict is False:
        assert type(found) is type(expected) is tuple
        assert len(found) == len(expected)
        found_logits = found[1 if with_labels else 0]
        found_loss, expected_loss = found[0], expected[0]
    else:
        assert list(found.keys()) == list(expected.keys())
        found_logits, found_loss, expected_loss = found.logits, found.loss, expected.loss
        assert len(found.hidden_states) == len(expected.hidden_states)
        assert found.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    torch.testing.assert_close(found_logits, logits, atol=1e-4, rtol=0)
    assert found_logits.requires_grad == logits.requires_grad
    if with_labels:
        torch.testing.assert_close(found_loss, expected_loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_loss_alone_on_request(models, tokens, training):
    model = models[0].train(training)
    whole = model(tokens, labels=tokens)
    alone = model(tokens, labels=tokens, return_logits=False)
    assert alone.logits is None
    torch.testing.assert_close(alone.loss, whole.loss)
    gradients = [
        torch.autograd.grad(output.loss, list(model.parameters())) for output in (whole, alone)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
