"""What processes send to each other in a step, by rule: what FSDP, tensor parallelism and Muon imply."""

from collections.abc import Iterator
from math import prod

from torch import Tensor
from torch.distributed.tensor import DTensor

from lpa.model.configuration_lpa import RESIDUAL_PROJECTIONS, LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.distributed.matrix_exchange import MatrixExchange
from lpa.train.optim.muon import stack_by_shape
from lpa.train.simulation.collectives import Collective, merge_collectives
from lpa.train.simulation.run_shape import RunShape

_FLOAT32 = 4  # bytes of weights outside the layers, of gradients and of the sums of the loss


def expected_collectives(
    model: LPAForCausalLM, shape: RunShape, muon_weights: list[Tensor]
) -> list[Collective]:
    """The exchanges of one step, but for those of single numbers.

    Args:
        model: on the meta device, sharded over the processes of the default group.
        muon_weights: what Muon has, in the order in which it has them.
    """
    if shape.processes == 1:
        return []
    found = [
        *_fsdp(model, shape),
        *_tensor_parallel(shape),
        *_muon(muon_weights, shape.dtype.itemsize),
    ]
    return merge_collectives(c for c in found if c.processes > 1)


def _fsdp(model: LPAForCausalLM, shape: RunShape) -> Iterator[Collective]:
    """Each layer is gathered for each forward and each backward pass, what is outside once a step.

    Gradients are reduced after the last backward pass or after each, over the shards, then over the replicas.
    """
    layout, passes, syncs = shape.layout, shape.forward_passes, shape.gradient_syncs
    layers = [p for layer in model.model.layers for p in layer.parameters()]
    inside = sum(map(_local_numel, layers))
    parameters = list(model.parameters())
    outside = sum(map(_local_numel, parameters)) - inside
    trained = sum(_local_numel(p) for p in parameters if p.requires_grad)
    groups = [*model.model.layers, model]
    reduced = sum(any(p.requires_grad for p in _own(group, model)) for group in groups)
    yield Collective(
        "forward_backward",
        "shard",
        "all_gather",
        layout.shard,
        passes * 2 * len(model.model.layers) + 1,
        layout.shard * (passes * 2 * inside * shape.dtype.itemsize + outside * _FLOAT32),
    )
    yield Collective(
        *("forward_backward", "shard", "reduce_scatter", layout.shard),
        *(syncs * reduced, syncs * layout.shard * trained * _FLOAT32),
    )
    yield Collective(
        *("forward_backward", "replicate", "all_reduce", layout.replicate),
        *(syncs * reduced, syncs * trained * _FLOAT32),
    )


def _own(group: object, model: LPAForCausalLM) -> list[Tensor]:
    if group is not model:
        return list(group.parameters())  # type: ignore[attr-defined]
    inside = {p for layer in model.model.layers for p in layer.parameters()}
    return [p for p in model.parameters() if p not in inside]


def _local_numel(parameter: Tensor) -> int:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.numel()


def _tensor_parallel(shape: RunShape) -> Iterator[Collective]:
    """Each projection sends once: its latent, or where it is dense its whole input or output.

    What ends a branch sends forward; what begins one sends the gradient backward. The embedding sends its
    output in float32, the head the gradient of its input, and the loss three numbers per token: the largest
    logit, the sum of exponentials and the logit of the target.
    """
    config, tokens = shape.model_config, shape.micro_batch_size * shape.seq_len
    sent = [
        _sent_bytes(config, name, layer, shape.dtype.itemsize)
        for layer in range(config.num_hidden_layers)
        for name in config.projections
    ]
    ends = config.hidden_size * (_FLOAT32 + shape.dtype.itemsize)
    per_token = sum(sent) + ends + 3 * _FLOAT32
    yield Collective(
        *("forward_backward", "tensor", "all_reduce", shape.layout.tensor),
        shape.forward_passes * (len(sent) + 5),
        shape.forward_passes * tokens * per_token,
    )


def _sent_bytes(config: LPAConfig, name: str, layer: int, itemsize: int) -> int:
    """Per token: a latent, an output or the gradient of an input, all in the dtype of the products."""
    rank = config.projection_rank(name, layer)
    inputs, outputs = config.projection_shape(name)
    width = outputs if name in RESIDUAL_PROJECTIONS else inputs
    return (width if rank is None else rank) * itemsize


def _muon(muon_weights: list[Tensor], itemsize: int) -> Iterator[Collective]:
    """Shards go to the processes that orthogonalize, and come back; what all hold alike is gathered."""
    for stack in stack_by_shape(muon_weights):
        like, count = stack[0], len(stack)
        assert isinstance(like, DTensor)
        for level in MatrixExchange(like, count).levels:
            own = level.counts[0]
            before, after = count * prod(level.shape), own * prod(level.collected_shape)
            kind, messages, numbers = "all_to_all", 2, before + after
            if level.axis is None:
                is_even = len(set(level.counts)) == 1
                kind = "all_gather" if is_even else "broadcast"
                messages, numbers = 1 if is_even else sum(map(bool, level.counts)), before
            names = like.device_mesh.mesh_dim_names or ()
            yield Collective(
                *("optimizer", names[level.dimension], kind, len(level.counts)),
                *(messages, numbers * itemsize),
            )
            count = own
