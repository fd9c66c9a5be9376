"""Saves models with a card."""

from pathlib import Path
from typing import TYPE_CHECKING

from lpa.model.hub.model_card import CardContent, write_model_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_model(model: "PreTrainedModel", directory: Path, card: CardContent) -> None:
    """Write a model with its card; every command that writes a model does it here."""
    model.save_pretrained(directory)
    write_model_card(model, directory, card)
