"""RMSNorm, SwiGLU and RoPE in few passes over memory, for eager execution.

Written out as tensor operations, each of these makes a temporary per operation and autograd keeps several
of them. The functions here keep the inputs alone and work out the rest again in the backward pass, which
costs less than reading it back. A backward pass that is to be differentiated in its turn takes steps that
can be. Where a compiler fuses such operations anyway, where tensors are sharded over processes, in low
precision, under the transforms of torch.func and in forward mode, the plain formula runs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

# Fake ones, on which runs are planned, take the steps that real ones would.
_WHOLE = (Tensor, torch.nn.Parameter, FakeTensor)


def _use_custom_backward(*tensors: Tensor) -> bool:
    """Whether the functions here may take the place of the plain formula."""
    return (
        not torch.compiler.is_compiling()
        and not is_transformed()
        and all(type(tensor) in _WHOLE for tensor in tensors)
        and all(tensor.dtype == tensors[0].dtype for tensor in tensors)
    )


def is_transformed() -> bool:
    """Whether a transform of torch.func, such as vmap, or forward-mode differentiation is at work.

    A custom backward pass would have to say what it does under each of them.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class RMSNorm(LlamaRMSNorm):
    """x / rms(x) · weight (Zhang & Sennrich 2019, eq. 4), over the last dimension.

    In bfloat16 and float16 it is that of transformers, which works in float32 inside.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        exact = hidden_states.dtype in (torch.float32, torch.float64)
        if exact and _use_custom_backward(hidden_states, self.weight):
            return _RMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon)[0]
        return super().forward(hidden_states)


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        return (x * scale).mul_(weight), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, ctx.epsilon = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        # With x̂ = x · scale and g the gradient of x̂: that of x is scale · (g - x̂ · mean(g · x̂)).
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            scale = (x.square().mean(-1, keepdim=True) + ctx.epsilon).rsqrt()
            normed, inner = x * scale, grad_output * weight
            grad_x = scale * (inner - normed * (inner * normed).mean(-1, keepdim=True))
            return grad_x, (grad_output * normed).reshape(-1, x.shape[-1]).sum(0), None
        weighted = grad_output * x
        mean = (weighted @ weight).unsqueeze(-1).mul_(scale).div_(x.shape[-1])
        grad_weight = weighted.mul_(scale).reshape(-1, x.shape[-1]).sum(0)
        grad_x = torch.mul(grad_output, weight, out=weighted)
        return grad_x.addcmul_(x, mean.mul_(scale), value=-1).mul_(scale), grad_weight, None


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, the element-wise part of SwiGLU (Shazeer 2020)."""
    if _use_custom_backward(gate, up):
        return _SiluMulFunction.apply(gate, up)
    return F.silu(gate) * up


class _SiluMulFunction(torch.autograd.Function):
    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate).mul_(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            sigmoid = gate.sigmoid()
            of_gate = grad_output * up * sigmoid * (1 + gate * (1 - sigmoid))
            return of_gate, grad_output * gate * sigmoid
        grad_up = F.silu(gate).mul_(grad_output)
        return torch.ops.aten.silu_backward(grad_output * up, gate), grad_up


def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn queries and keys by their positions (Su et al. 2021), in the half-rotation layout.

    Shapes: query, key (batch, heads, sequence, head_dim); cos, sin (batch or 1, sequence, head_dim).
    """
    if _use_custom_backward(query, key, cos, sin):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return _RotaryFunction.apply(query, cos, sin), _RotaryFunction.apply(key, cos, sin)
    return apply_rotary_pos_emb(query, key, cos, sin)


class _RotaryFunction(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _rotate(x, cos, sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _RotaryFunction.apply(grad_output, cos, -sin), None, None  # a rotation's inverse


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x · cos + rotate_half(x) · sin; both halves of cos and sin are alike."""
    half = x.shape[-1] // 2
    rotated = x * cos
    rotated[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return rotated
