import math

import pytest
import torch
from torch import nn

from lpa.lowrank import INITIALIZATIONS, init_factors

# (in_features, out_features, rank): square, wide, tall, full rank.
SHAPES = [(96, 96, 24), (200, 64, 16), (64, 200, 16), (48, 80, 48)]
DEVIATION = 0.02


def draw(method, shape, seed=0, **options):
    torch.manual_seed(seed)
    return init_factors(method, *shape, DEVIATION, **options)


def product(method, shape, seed=0, **options):
    down, up = draw(method, shape, seed, **options)
    return up.double() @ down.double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", INITIALIZATIONS)
def test_factors_have_the_shapes_and_the_dtype_asked_for(method, shape):
    in_features, out_features, rank = shape
    for dtype in (torch.float32, torch.bfloat16):
        down, up = draw(method, shape, dtype=dtype)
        assert (down.shape, up.shape) == ((rank, in_features), (out_features, rank))
        assert {down.dtype, up.dtype} == {dtype}
        assert down.isfinite().all()
        assert up.isfinite().all()
        assert not down.requires_grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", INITIALIZATIONS)
def test_a_scale_is_that_of_the_product_and_shared_by_the_factors(method, shape):
    down, up = draw(method, shape)
    smaller = draw(method, shape, scale=0.25)
    # Roundings of float32, after an SVD whose input is rounded otherwise.
    torch.testing.assert_close(smaller[0], down * 0.5, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(smaller[1], up * 0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_scaled_gives_the_product_the_dense_deviation(shape):
    rank = shape[2]
    variances = []
    for seed in range(20):
        down, up = draw("scaled", shape, seed)
        variances.append((up @ down).square().mean().item())
        # Both factors share the work. Their sample deviations err by 1 in √(2 · entries).
        expected = math.sqrt(DEVIATION / math.sqrt(rank))
        assert down.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * down.numel()))
        assert up.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * up.numel()))
    # Over 20 draws of these shapes the mean errs by less than 1%.
    assert sum(variances) / 20 == pytest.approx(DEVIATION**2, rel=0.03)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_is_the_truncated_svd_of_the_dense_start(shape, seed):
    in_features, out_features, rank = shape
    torch.manual_seed(seed)
    dense = torch.empty(out_features, in_features).normal_(std=DEVIATION).double()
    down, up = (factor.double() for factor in draw("spectral", shape, seed))
    values = torch.linalg.svdvals(dense)
    # The factors are rounded to float32.
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(torch.linalg.svdvals(up @ down)[:rank], values[:rank], **near)
    error = torch.linalg.matrix_norm(dense - up @ down)
    torch.testing.assert_close(error, torch.linalg.vector_norm(values[rank:]), **near)
    # √S on either side.
    torch.testing.assert_close(down @ down.T, values[:rank].diag(), **near)
    torch.testing.assert_close(up.T @ up, values[:rank].diag(), **near)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_has_equal_singular_values_and_the_dense_deviation(shape, seed):
    in_features, out_features, rank = shape
    down, up = (factor.double() for factor in draw("orthogonal", shape, seed))
    singular = DEVIATION * math.sqrt(in_features * out_features / rank)
    identity = singular * torch.eye(rank, dtype=torch.float64)
    # QR in float32.
    torch.testing.assert_close(down @ down.T, identity, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(up.T @ up, identity, rtol=1e-5, atol=1e-6)
    assert (up @ down).square().mean().sqrt().item() == pytest.approx(DEVIATION, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_default_starts_each_factor_as_torch_starts_a_linear_map(shape):
    in_features, out_features, rank = shape
    torch.manual_seed(0)
    linears = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
    for factor, linear in zip(draw("linear", shape), linears, strict=True):
        assert torch.equal(factor, linear.weight)
        bound = linear.in_features**-0.5
        assert bound * 0.95 < factor.abs().max().item() <= bound
    variances = [product("linear", shape, seed).square().mean().item() for seed in range(20)]
    assert sum(variances) / 20 == pytest.approx(1 / (9 * in_features), rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_cola_starts_as_its_authors_do_whatever_the_deviation(shape):
    in_features, out_features, rank = shape
    # ColaLayer: randn / rank^(1/4) · ((in + out)^(-1/2))^(1/2), for both factors.
    expected = rank**-0.25 * (in_features + out_features) ** -0.25
    for factor in draw("cola", shape):
        assert factor.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * factor.numel()))


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_starts_at_zero(shape):
    down, up = draw("lora", shape)
    torch.manual_seed(0)
    assert torch.equal(down, nn.Linear(shape[0], shape[2], bias=False).weight)
    assert up.count_nonzero() == 0


def test_a_seed_gives_the_same_factors_again_and_another_gives_others():
    for method in INITIALIZATIONS:
        first, again, other = (
            torch.cat([f.flatten() for f in draw(method, SHAPES[0], s)]) for s in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method: got 'svd'; expected one of"):
        draw("svd", SHAPES[0])
