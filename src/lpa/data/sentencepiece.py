"""SentencePiece models as tokenizers of the `tokenizers` library, id for id."""

from pathlib import Path
from typing import Any

from lpa.data.text_encoder import TextEncoder
from lpa.errors import UserError

_SPACE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # types of pieces, in SentencePiece's own numbering
_NORMAL = 1
_BPE, _UNIGRAM = 2, 1  # types of models

# What the two libraries are compared on: what normalizers, prefixes and byte pieces disagree about.
_PROBE = (
    "A plain sentence, as most are.",
    "  two  spaces, \ttabs\t and a trailing one ",
    "lines\nof\r\ntext\n\n\nand more",
    "naïve café, ﬁ ½ Ⅳ Å, e\u0301 and 😀👍🏽 한국어 中文 עברית",
    "nul\0 and \x07bell, ---------------- aaaaaaaaaaaaaaaa 1234567890",
    "def f(x):\n        return x ** 2  # code",
    " ",
)


def load_sentencepiece(path: Path) -> Any:
    """A transformers tokenizer from a SentencePiece `.model` (Kudo & Richardson 2018), BPE or unigram.

    Raises:
        UserError: sentencepiece is not installed, `path` is no such model, or it does something that the
            `tokenizers` library cannot do alike.
    """
    try:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            f"tokenizer {path}: needs sentencepiece and protobuf: pip install 'lpa[sentencepiece]'"
        ) from error
    from transformers import PreTrainedTokenizerFast

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        content = path.read_bytes()
        proto.ParseFromString(content)
        original = sentencepiece.SentencePieceProcessor(model_proto=content)
    # protobuf and sentencepiece have their own errors, the latter a bare RuntimeError.
    except Exception as error:
        raise UserError(f"tokenizer {path}: is not a SentencePiece model ({error})") from error
    backend = _backend(proto, path)
    own = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    control = [piece.piece for piece in proto.pieces if piece.type in (_CONTROL, _UNKNOWN)]
    encoder = TextEncoder(backend, None)
    for text in (*_PROBE, *(f"one {piece} two{piece}" for piece in [*own, *control])):
        if original.encode(text) != encoder.encode(text):
            raise UserError(
                f"tokenizer {path}: would encode {text!r} to other ids than SentencePiece does; its "
                "normalizer or its user-defined pieces cannot be carried over"
            )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{
            f"{name}_token": proto.pieces[number].piece
            for name, number in (
                ("unk", proto.trainer_spec.unk_id),
                ("bos", proto.trainer_spec.bos_id),
                ("eos", proto.trainer_spec.eos_id),
                ("pad", proto.trainer_spec.pad_id),
            )
            if number >= 0
        },
    )


def _backend(proto: Any, path: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    trainer = proto.trainer_spec
    model: Any
    if trainer.model_type == _BPE:
        model = models.BPE(
            {piece.piece: number for number, piece in enumerate(proto.pieces)},
            _merges(proto),
            unk_token=proto.pieces[trainer.unk_id].piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    elif trainer.model_type == _UNIGRAM:
        model = models.Unigram(
            [(piece.piece, piece.score) for piece in proto.pieces],
            unk_id=trainer.unk_id,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise UserError(f"tokenizer {path}: is neither a BPE nor a unigram model")
    backend = Tokenizer(model)
    backend.normalizer = _normalizer(proto.normalizer_spec)
    strip = [decoders.Strip(" ", 1, 0)] if proto.normalizer_spec.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for piece in proto.pieces:
        if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            special = piece.type != _USER_DEFINED
            backend.add_tokens([AddedToken(piece.piece, special=special, normalized=False)])
    return backend


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best score first, as SentencePiece merges."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = [
        (-score, place, (piece[:place], piece[place:]))
        for piece, score in scores.items()
        for place in range(1, len(piece))
        if piece[:place] in scores and piece[place:] in scores
    ]
    return [pair for _, _, pair in sorted(merges)]


def _normalizer(spec: Any) -> Any:
    """The normalization of SentencePiece, step by step in its order."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
