"""A simulated step beside what rules say of it, as rows of tables."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lpa.display.units import format_bytes
from lpa.train.simulation.collectives import Collective

# What one of the two may count with the other is in one row.
_KINDS = {
    "weights": ("weights",),
    "gathered weights": ("gathered",),
    "gradients": ("gradients",),
    "optimizer states": ("optimizer",),
    "activations, temporary": ("activations", "temporary"),
}
_PHASES = {"forward_backward": "passes"}


class MemoryRow(NamedTuple):
    """Bytes of one kind; the ratio is planned / simulated."""

    phase: str
    kind: str
    simulated: str
    planned: str
    ratio: str


def compare_memory(
    planned: dict[str, dict[str, int]], simulated: dict[str, dict[str, int]]
) -> Iterator[MemoryRow]:
    """For each phase of a step its kinds and their sum."""
    for phase, kinds in simulated.items():
        pairs = {
            name: (
                sum(kinds.get(part, 0) for part in parts),
                sum(planned[phase].get(part, 0) for part in parts),
            )
            for name, parts in _KINDS.items()
        }
        pairs["all"] = sum(kinds.values()), sum(planned[phase].values())
        for name, (done, rule) in pairs.items():
            ratio = f"{rule / done:.3f}" if done else ""
            label = _PHASES.get(phase, phase)
            yield MemoryRow(label, name, format_bytes(done), format_bytes(rule), ratio)


class CollectiveRow(NamedTuple):
    """Exchanges of one kind, how many and what a process sends in them, simulated and planned."""

    phase: str
    along: str
    kind: str
    times: str
    planned_times: str
    sent: str
    planned_sent: str


def compare_collectives(
    planned: Sequence[Collective], simulated: Sequence[Collective]
) -> Iterator[CollectiveRow]:
    """All that were simulated; the few bytes of the gradient's norm are in no plan."""

    def key(c: Collective) -> tuple[str, str, str, int]:
        return c.phase, c.dimension, c.kind, c.processes

    of_plan = {key(c): c for c in planned}
    for done in simulated:
        rule = of_plan.get(key(done))
        yield CollectiveRow(
            _PHASES.get(done.phase, done.phase),
            f"{done.dimension} ({done.processes})",
            done.kind,
            f"{done.count:,}",
            "" if rule is None else f"{rule.count:,}",
            format_bytes(done.sent_bytes),
            "" if rule is None else format_bytes(rule.sent_bytes),
        )
