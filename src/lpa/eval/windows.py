"""How a text is split into what a model reads at once."""

from dataclasses import dataclass
from typing import Any

from lpa.errors import UserError, expected_one_of
from lpa.eval.text_scores import MODES


@dataclass
class WindowConfig:
    """How text is split for a model; see `lpa.eval.text_scores.iter_windows`.

    Attributes:
        mode: None: `sliding` where there is a stride, else `blocks`.
        seq_len: None: as many positions as the model was made for, where its configuration says.
        stride: None: half the context.
        batch_size: windows per forward pass.
    """

    mode: str | None = None
    seq_len: int | None = None
    stride: int | None = None
    batch_size: int = 8

    def resolve(self, positions: int | None) -> dict[str, Any]:
        """The arguments of `score` for a model of so many positions; None: its configuration does not say.

        Raises:
            UserError: a value that the model or the mode does not admit.
        """
        if self.batch_size < 1:
            raise UserError(f"--batch-size: got {self.batch_size}; expected at least 1")
        mode = self.mode or ("blocks" if self.stride is None else "sliding")
        if mode not in MODES:
            raise UserError(f"--mode: got {mode!r}; {expected_one_of(mode, MODES)}")
        seq_len = self._seq_len(positions)
        if mode == "blocks":
            if self.stride not in (None, seq_len):
                raise UserError(
                    f"--stride {self.stride}: blocks do not overlap; expected --mode sliding"
                )
            stride = seq_len
        else:
            stride = max(1, seq_len // 2) if self.stride is None else self.stride
        if not 1 <= stride <= seq_len:
            raise UserError(f"--stride: got {stride}; expected from 1 to the context, {seq_len}")
        return {"mode": mode, "seq_len": seq_len, "stride": stride, "batch_size": self.batch_size}

    def _seq_len(self, positions: int | None) -> int:
        seq_len = positions if self.seq_len is None else self.seq_len
        if seq_len is None:
            raise UserError(
                "--seq-len: got none; expected the tokens per window, as the model's config.json does not "
                "say how many it reads at once (max_position_embeddings)"
            )
        if positions is not None and not 1 <= seq_len <= positions:
            raise UserError(
                f"--seq-len: got {seq_len}; expected from 1 to {positions}, "
                "the model's max_position_embeddings"
            )
        if seq_len < 1:
            raise UserError(f"--seq-len: got {seq_len}; expected at least 1")
        return seq_len
