"""Saves models: weights, the code that opens them, and a card."""

from pathlib import Path
from typing import TYPE_CHECKING

from lpa.model.hub.model_card import CardContent, write_model_card
from lpa.model.hub.remote_code import with_remote_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_model(model: "PreTrainedModel", directory: Path, card: CardContent) -> None:
    """Write a model with its card, and with the code that opens it where this package is missing.

    Every command that writes a model does it here. `save_pretrained` alone writes no card, and no code for
    a class of transformers with low-rank pairs inside.
    """
    with with_remote_code(model, directory):
        model.save_pretrained(directory)
    write_model_card(model, directory, card)
