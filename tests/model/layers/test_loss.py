import pytest
import torch
import torch.nn.functional as F
from helpers.matrix_products import MatrixProducts

from lpa.model.layers.loss import _chunks, lm_head_loss

VOCABULARY, WIDTH = 97, 16


def problem(tokens=600, *, bias=False, scale=1.0):
    """More tokens than one chunk has, some of them not to be scored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).mul_(scale).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    offset = torch.randn(VOCABULARY, generator=generator).requires_grad_() if bias else None
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator)
    targets[::7] = -100
    return hidden, weight, offset, targets


def plain(hidden, weight, bias, targets, items):
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum") / items


def test_the_problem_takes_more_than_one_chunk():
    assert len(list(_chunks(600, problem()[1]))) > 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("items", [514, torch.tensor(100)])
def test_loss_and_gradients_are_those_of_whole_logits(bias, items):
    *leaves, targets = problem(bias=bias)
    expected = plain(*leaves, targets, items)
    loss = lm_head_loss(*leaves, targets, items)
    torch.testing.assert_close(loss, expected)
    leaves = [leaf for leaf in leaves if leaf is not None]
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, leaves),
        torch.autograd.grad(3 * expected, leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_second_backward_pass_adds_the_same_again():
    hidden, weight, bias, targets = problem()
    loss = lm_head_loss(hidden, weight, bias, targets, 100)
    (2 * loss).backward(retain_graph=True)
    once = weight.grad.clone()
    (2 * loss).backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_what_needs_no_gradient_gets_none():
    hidden, weight, bias, targets = problem()
    weight.requires_grad_(False)
    lm_head_loss(hidden, weight, bias, targets, 100).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_logits_beyond_the_range_of_exp_have_a_finite_loss():
    hidden, weight, bias, targets = problem(scale=1000.0)
    loss = lm_head_loss(hidden, weight, bias, targets, 100)
    torch.testing.assert_close(loss, plain(hidden, weight, bias, targets, 100))
    loss.backward()
    assert hidden.grad.isfinite().all()


def test_nothing_to_score_is_no_loss():
    hidden, weight, bias, targets = problem()
    loss = lm_head_loss(hidden, weight, bias, torch.full_like(targets, -100), 1)
    loss.backward()
    assert loss == 0
    assert not weight.grad.any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("items", [514, torch.tensor(100)])
def test_gradients_of_gradients_are_those_of_whole_logits(bias, items):
    """Of the embedding's gradient penalty, say; torch's chunked loss drops out of it without a word."""
    *leaves, targets = problem(bias=bias)
    wanted = [leaf for leaf in leaves if leaf is not None]

    def second(loss):
        first = torch.autograd.grad(3 * loss, wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    ours = second(lm_head_loss(*leaves, targets, items))
    theirs = second(plain(*leaves, targets, items))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("times", [1, 2])
def test_functional_transforms_differentiate_it(times):
    hidden, weight, _, targets = problem()

    def gradient(loss):
        def function(w):
            return loss(hidden.detach(), w, None, targets, 100)

        first = torch.func.grad(function)
        second = torch.func.grad(lambda w: first(w).square().sum())
        return (first if times == 1 else second)(weight.detach())

    torch.testing.assert_close(gradient(lm_head_loss), gradient(plain))


def products(function) -> list[set[torch.dtype]]:
    """The dtypes of each matrix product that is made while a function runs."""
    with MatrixProducts() as found:
        function()
    return found.products


@pytest.mark.parametrize("tokens", [8, 600])  # less and more than one chunk
@pytest.mark.parametrize("bias", [False, True])
def test_under_autocast_all_products_are_bfloat16_and_the_sums_float32(tokens, bias):
    *leaves, targets = problem(tokens, bias=bias)
    given = [leaf for leaf in leaves if leaf is not None]
    gradients = []

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = lm_head_loss(*leaves, targets, 100)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, plain(*leaves, targets, 100), rtol=2e-3, atol=0)
        gradients[:] = torch.autograd.grad(loss, given)

    expected = torch.autograd.grad(plain(*leaves, targets, 100), given)
    made = products(step)
    of_plain = products(lambda: plain(*leaves, targets, 100))
    assert made.count({torch.bfloat16}) >= 3
    assert len(made) - made.count({torch.bfloat16}) == len(of_plain)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float32
        # Rounding of the inputs, of 8 bits each, and of the logits.
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("label", [-1, VOCABULARY, -101])
def test_a_label_that_is_no_token_is_refused(label, training):
    hidden, weight, _, targets = problem(40)
    targets[3] = label
    with (
        torch.set_grad_enabled(training),
        pytest.raises(RuntimeError, match=f"expected tokens 0 to {VOCABULARY - 1}"),
    ):
        lm_head_loss(hidden, weight, None, targets, 10)


@pytest.mark.parametrize("items", [0, torch.tensor(0)])
def test_no_counted_token_gives_zero_loss_and_zero_gradients(items):
    hidden, weight, bias, targets = problem(bias=True)
    loss = lm_head_loss(hidden, weight, bias, torch.full_like(targets, -100), items)
    loss.backward()
    assert loss == 0
    for leaf in (hidden, weight, bias):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_it_compiles_without_graph_breaks():
    hidden, weight, _, targets = problem()
    compiled = torch.compile(lm_head_loss, backend="aot_eager", fullgraph=True)
    loss = compiled(hidden, weight, None, targets, 100)
    torch.testing.assert_close(loss, plain(hidden, weight, None, targets, 100))
    expected = torch.autograd.grad(plain(hidden, weight, None, targets, 100), [hidden, weight])
    for ours, theirs in zip(torch.autograd.grad(loss, [hidden, weight]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_in_float16_are_as_good_as_those_of_whole_logits():
    """A loss scale makes them large enough before they are rounded, not afterwards."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, WIDTH, generator=generator)
    weight = torch.randn(2000, WIDTH, generator=generator) / 4
    targets = torch.randint(2000, (64,), generator=generator)
    items, scale = 2**17, 2.0**16
    exact = [x.clone().double().requires_grad_() for x in (hidden, weight)]
    plain(*exact, None, targets, items).backward()
    for dtype in (torch.float32, torch.float16):  # autocast, or weights of float16
        leaves = [x.clone().to(dtype).requires_grad_() for x in (hidden, weight)]
        with torch.autocast("cpu", torch.float16):
            loss = lm_head_loss(*leaves, None, targets, items)
        assert loss.dtype == torch.float32
        (scale * loss).backward()
        for leaf, reference in zip(leaves, exact, strict=True):
            error = (leaf.grad.double() / scale - reference.grad).norm() / reference.grad.norm()
            assert error < 3e-3
