"""Checks that a model and its files fit: no missing key, no unexpected one, no size beyond the files."""

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lpa.errors import LPAWarning, UserError
from lpa.model.auto import QUANT_METHOD
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.weights import Weights


def check_missing_keys(
    model: Any, found: dict[str, Any], refuse: Callable[[str], UserError], *, new_head: bool = False
) -> None:
    """Refuse a model of which parameters were not in the files.

    Args:
        found: what `from_pretrained` says with `output_loading_info`.
        refuse: makes an error of what the files have or have not.
        new_head: whether all but the base model may be missing.

    Raises:
        UserError: naming the first.
    """
    prefix = f"{model.base_model_prefix}."
    missing = {name for name in found["missing_keys"] if not new_head or name.startswith(prefix)}
    if missing:
        raise refuse(f"has no {min(missing)}{_and_others(missing)}")
    mismatched = {name: shapes for name, *shapes in found["mismatched_keys"]}
    if mismatched:
        name = min(mismatched)
        theirs, ours = (tuple(shape) for shape in mismatched[name])
        raise refuse(
            f"has {name} of shape {theirs}; the model of its configuration has {ours}"
            f"{_and_others(mismatched)}"
        )


def check_unexpected_keys(
    model: Any, found: dict[str, Any], weights: Weights, *, new_head: bool = False
) -> None:
    """Refuse files with tensors that the model should have used, or that are no floating-point numbers.

    A tensor for a module like one that the model has is a layer or a bias that its configuration lacks.
    Others belong to heads and towers that a causal language model does without; these are warned of.

    Raises:
        UserError: naming the first.
    """
    names = set(found["unexpected_keys"])
    if names:
        _check_unused(model, names, weights, new_head)
    strange = {name for name, tensor in weights.tensors.items() if not tensor.is_floating}
    if strange and not is_quantized(model.config):
        parameters = _with_and_without(model, (name for name, _ in model.named_parameters()))
        for name in sorted(strange & parameters):
            raise weights.error(weights.name, f"has {weights.not_floating(name)}")


def _check_unused(model: Any, names: set[str], weights: Weights, new_head: bool) -> None:
    modules = model.named_modules()
    holders = (n for n, m in modules if next(m.parameters(recurse=False), None) is not None)
    kinds = {_kind(name) for name in _with_and_without(model, holders)}
    ours = isinstance(model.config, LPAConfig) and not new_head
    strange = {name for name in names if ours or _kind(name.rpartition(".")[0]) in kinds}
    if strange:
        raise weights.error(
            weights.name,
            f"has {min(strange)}{_and_others(strange)}, which the model of config.json lacks",
        )
    if not new_head:
        warnings.warn(
            f"{weights.field} {weights.directory}: {weights.name} has {min(names)}{_and_others(names)}, "
            f"which {type(model).__name__} does without",
            LPAWarning,
            stacklevel=5,
        )


def _with_and_without(model: Any, names: Iterable[str]) -> set[str]:
    """Names as files may have them: a base model saved alone leaves the first part out."""
    prefix = f"{model.base_model_prefix}."
    return {form for name in names for form in (name, name.removeprefix(prefix), prefix + name)}


def _kind(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def _and_others(names: Collection[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def ties_embeddings(model: Any) -> bool:
    """Whether the LM head of a causal language model has the weights of its embedding.

    transformers leaves a head alone that differs from the embedding in the files, whatever the
    configuration says.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(
        getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        and (head is None or getattr(head, "weight", None) is embedding.weight)
    )


def is_quantized(config: Any) -> bool:
    """Whether weights are stored as other numbers than they are; low-rank pairs of ours are not."""
    return quantization_method(config) not in (None, QUANT_METHOD)


def quantization_method(config: Any) -> Any:
    """The `quant_method` of a configuration that has one."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    method = (
        given.get("quant_method", "unnamed")
        if isinstance(given, dict)
        else getattr(given, "quant_method", "unnamed")
    )
    return getattr(method, "value", method)


@contextmanager
def limit_model_size(elements: int, tensors: int, source: str, holder: str) -> Iterator[None]:
    """Stop modules from being built once their parameters, or their buffers, exceed a size.

    Args:
        elements: most numbers, of parameters and of buffers, the latter beyond 2³⁰.
        tensors: most parameters.
        source: what describes the model, for the message.
        holder: what has less room.

    Raises:
        UserError: from within the building.
    """
    from torch.nn.modules import module as hooks

    seen: set[tuple[int, str]] = set()
    totals = {"parameters": 0, "buffers": 0}

    def count(kind: str, most: int) -> Any:
        def hook(module: Any, name: str, tensor: Any) -> None:
            # Loading registers each of them again.
            if tensor is None or (id(module), name) in seen:
                return
            seen.add((id(module), name))
            totals[kind] += tensor.numel()
            if totals[kind] > most or len(seen) > 2 * tensors:
                raise UserError(
                    f"{source} describes a model of over {totals['parameters']:,} parameters, far more "
                    f"than {holder}"
                )

        return hook

    removable = [
        hooks.register_module_parameter_registration_hook(count("parameters", elements)),
        hooks.register_module_buffer_registration_hook(count("buffers", elements + 2**30)),
    ]
    try:
        yield
    finally:
        for handle in removable:
            handle.remove()


@contextmanager
def as_user_error(where: str) -> Iterator[None]:
    """Raises a `UserError` of one line for whatever is raised within: the files are damaged.

    Readers raise what they like: SafetensorError, KeyError, RuntimeError of torch, validation errors.
    """
    try:
        yield
    except Exception as error:
        raise UserError(f"{where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= 300 else f"{reason[:300]}…"


@contextmanager
def silence_loading() -> Iterator[None]:
    """What transformers would log of files that do not fit is said in the error."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
