"""SentencePiece models as tokenizers of the `tokenizers` library, id for id."""

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

from lpa.data.document_limits import begin_with_bos
from lpa.data.text_encoder import TextEncoder
from lpa.errors import UserError

_SPACE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # types of pieces, in SentencePiece's own numbering
_NORMAL = 1
_BPE, _UNIGRAM = 2, 1  # types of models

_ROLES = tuple(f"{name}_token" for name in ("unk", "bos", "eos", "pad", "sep", "cls", "mask"))
_TOKEN_OPTIONS = ("lstrip", "normalized", "rstrip", "single_word", "special")

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


def apply_settings(tokenizer: Any, directory: Path) -> None:
    """Give a tokenizer from `load_sentencepiece` what the files beside its model say.

    These are tokens that the model lacks, which tokens are special and what for, whether a text begins
    with one, and the chat template.

    Args:
        tokenizer: is changed.
        directory: as `save_pretrained` of a tokenizer that runs SentencePiece writes it.

    Raises:
        UserError: a token cannot have the id that a file gives it, or a special token does not exist.
    """
    config = _read_json(directory / "tokenizer_config.json")
    roles = {**_read_json(directory / "special_tokens_map.json"), **config}
    backend = tokenizer.backend_tokenizer
    others = [_content(token) for token in roles.get("additional_special_tokens") or ()]
    special = {*others, *(_content(roles[role]) for role in _ROLES if roles.get(role))}
    for number, token in _added_tokens(directory, config, special):
        backend.add_tokens([token])
        if (found := backend.token_to_id(token.content)) != number:
            raise UserError(
                f"tokenizer {directory}: {token.content!r} would have id {found}; expected {number}, as "
                "its files say"
            )
    backend.add_special_tokens([token for token in others if backend.token_to_id(token) is None])
    for role in filter(roles.get, _ROLES):
        token = _content(roles[role])
        if backend.token_to_id(token) is None:
            raise UserError(
                f"tokenizer {directory}: its {role} is {token!r}; expected a token of its vocabulary"
            )
        setattr(tokenizer, role, token)
    if config.get("add_bos_token") and tokenizer.bos_token is not None:
        begin_with_bos(tokenizer)
    tokenizer.chat_template = _chat_template(directory, config)


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _content(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token


def _added_tokens(
    directory: Path, config: dict[str, Any], special: set[str]
) -> list[tuple[int, Any]]:
    """The tokens that files beside a model add to its own, by id."""
    from tokenizers import AddedToken

    added = {
        number: AddedToken(content, normalized=False, special=content in special)
        for content, number in _read_json(directory / "added_tokens.json").items()
    }
    for number, options in config.get("added_tokens_decoder", {}).items():
        known = {name: value for name, value in options.items() if name in _TOKEN_OPTIONS}
        added[int(number)] = AddedToken(options["content"], **known)
    return sorted(added.items(), key=itemgetter(0))


def _chat_template(directory: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        return {each["name"]: each["template"] for each in template}
    return template


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
