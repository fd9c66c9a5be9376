"""Models that never exist whole, in one process and in several real ones."""

import pytest
import torch
from helpers.sharded_models import SEED, STARTS, config_of, gathered, sharded

from lpa.model import LPAForCausalLM
from lpa.train.distributed.parallelize import ParallelLayout


def constructed(config) -> LPAForCausalLM:
    torch.manual_seed(SEED)
    return LPAForCausalLM(config)


@pytest.mark.parametrize("method", ["cola", "sltrain"])
def test_alone_other_projections_have_the_weights_of_the_constructor(method):
    config = config_of(placement="all", low_rank_method=method)
    ours = gathered(sharded(config, ParallelLayout(1, 1, 1)))
    theirs = gathered(constructed(config))
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("name", STARTS)
def test_alone_it_has_the_weights_of_the_constructor(name):
    config = config_of(**STARTS[name])
    model, expected = sharded(config, ParallelLayout(1, 1, 1)), constructed(config)
    ours, theirs = gathered(model), gathered(expected)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == config.tie_word_embeddings
