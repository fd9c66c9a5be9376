import math

import pytest

from lpa.scoring.perplexity import Perplexity


def test_perplexity_per_token_per_word_and_bits_per_byte():
    result = Perplexity.from_total_nll(100 * math.log(8), tokens=100, words=50, bytes=400)
    assert result.loss == pytest.approx(math.log(8))
    assert result.perplexity == pytest.approx(8)
    assert result.word_perplexity == pytest.approx(64)
    assert result.bits_per_byte == pytest.approx(0.75)


def test_a_loss_that_is_no_number_has_no_perplexity():
    found = Perplexity.from_total_nll(math.nan, tokens=10, words=5, bytes=40)
    assert math.isnan(found.loss)
    assert math.isnan(found.perplexity)
    assert math.isnan(found.word_perplexity)


def test_a_hopeless_model_has_an_infinite_word_perplexity_and_no_error():
    assert (
        Perplexity.from_total_nll(1e6, tokens=1000, words=10, bytes=1).word_perplexity == math.inf
    )
