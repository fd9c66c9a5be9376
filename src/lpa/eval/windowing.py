"""How a text is cut into what a model reads at once."""

from dataclasses import dataclass
from typing import Any

from lpa.errors import UserError
from lpa.eval.scoring import MODES


@dataclass
class Windowing:
    """How text is cut for a model; see `lpa.eval.scoring.windows`.

    Attributes:
        mode: None: `sliding` where there is a stride, else `blocks`.
        context: None: as many positions as the model was made for.
        stride: None: half the context.
        batch_size: windows per forward pass.
    """

    mode: str | None = None
    context: int | None = None
    stride: int | None = None
    batch_size: int = 8

    def resolved(self, positions: int) -> dict[str, Any]:
        """The arguments of `score` for a model of so many positions.

        Raises:
            UserError: a value that the model or the mode does not admit.
        """
        if self.batch_size < 1:
            raise UserError(f"--batch-size: got {self.batch_size}; expected at least 1")
        mode = self.mode or ("blocks" if self.stride is None else "sliding")
        if mode not in MODES:
            raise UserError(f"--mode: got {mode!r}; expected one of {', '.join(MODES)}")
        context = positions if self.context is None else self.context
        if not 1 <= context <= positions:
            raise UserError(
                f"--context: got {context}; expected from 1 to {positions}, "
                "what the model was made for"
            )
        if mode == "blocks":
            if self.stride not in (None, context):
                raise UserError(
                    f"--stride {self.stride}: blocks do not overlap; expected --mode sliding"
                )
            stride = context
        else:
            stride = max(1, context // 2) if self.stride is None else self.stride
        if not 1 <= stride <= context:
            raise UserError(f"--stride: got {stride}; expected from 1 to the context, {context}")
        return {"mode": mode, "context": context, "stride": stride, "batch_size": self.batch_size}


def positions_of(model: Any) -> int:
    """How many tokens a model was made to read at once.

    Raises:
        UserError: its configuration does not say, as that of models without positions.
    """
    config = model.config.get_text_config()
    # GPT-2's other name for it is mapped to this one.
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise UserError(
            f"model: {type(model).__name__} does not say how many tokens it reads at once "
            "(max_position_embeddings in its config.json)"
        )
    return positions
