"""Whether the weight of a module may be read in place of calling the module."""

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# The last is a plain tensor without content, of which torch.export and a simulation make programs.
_PLAIN = (nn.Parameter, Tensor, FakeTensor)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map that its weight and bias alone stand for.

    Every shorter way that reads weights asks here first. PEFT, bitsandbytes and parametrizations put
    other classes in the module's place; torchao and tensor parallelism other kinds of tensor.
    """
    return type(module) is nn.Linear and type(module.weight) in _PLAIN and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module does more than the `forward` of its class.

    Hooks of all modules together do not count: they are for profilers, which measure the shorter way.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__  # replaced in this module alone, as accelerate does
    )
