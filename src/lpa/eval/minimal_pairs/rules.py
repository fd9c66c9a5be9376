"""Minimal pairs from running English text: a sentence, and the same with one fault in its grammar.

The phenomena are among those of BLiMP (Warstadt et al. 2020, arXiv 1912.00582), whose sentences come from
templates. These come from text that people wrote, so a small model knows most of their words.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Sentence ends that are none, and lengths in words that make a sentence.
_ABBREVIATIONS = (
    "Mr.",
    "Mrs.",
    "Ms.",
    "Dr.",
    "St.",
    "Messrs.",
    "Mme.",
    "Mlle.",
    "Capt.",
    "Rev.",
    "Hon.",
    "No.",
    "vol.",
    "i.e.",
    "e.g.",
)
_INITIAL = re.compile(r"\b[A-HJ-Z]\.$")  # "I." may be the pronoun
_MIN_WORDS, _MAX_WORDS = 5, 40
_QUOTES = ('"', "“", "‘")

# After these the subjunctive stands, where "he were" is right.
_SUBJUNCTIVE = re.compile(
    r"\b(if|(al)?though|albeit|wish\w*|unless|lest|that|whether|suppos\w*|would|until|till|ere|before|"
    r"provided|except|imagine|fancy|rather|time|fear|case|(what|who|which|wher|how)(so)?ever)\b",
    re.I,
)
# After these a pronoun may be a part of the subject or none: "no one but him could", "neither of you is".
_ALONE = r"(?<!\w but )" + "".join(
    rf"(?<!\b{word} )" for word in ("and", "or", "nor", "of", "than", "as", "except", "save")
)

# "It was" is missing, as "it were" is right in "as it were", "it were better".
_AGREEMENT = {
    "he|she": {"was": "were", "is": "are", "has": "have", "does": "do"},
    "it": {"is": "are", "has": "have", "does": "do"},
    "I": {"was": "were", "am": "is", "have": "has", "do": "does"},
    "we|you|they": {"were": "was", "are": "is", "have": "has", "do": "does"},
}
_ACCUSATIVE = {"I": "me", "he": "him", "she": "her", "we": "us", "they": "them"}
_NOMINATIVE = {"me": "I", "him": "he", "us": "we", "them": "they"}
_FINITE_VERBS = "was|were|had|could|would|said|did|went|came|knew|must|should|asked|replied"
# "After" and "before" are missing, as "before I" may be a clause cut short, and "the after years" is English;
# so is "his", which is a pronoun too: "it was his by right".
_PREPOSITIONS = "of|to|with|for|from|by|at|upon|about|against|towards|toward"
_DETERMINERS = "the|a|an|my|our|their|your"
# Past tense -> participle, where they differ.
_PARTICIPLES = {
    "began": "begun",
    "broke": "broken",
    "chose": "chosen",
    "did": "done",
    "drew": "drawn",
    "drove": "driven",
    "ate": "eaten",
    "fell": "fallen",
    "flew": "flown",
    "gave": "given",
    "went": "gone",
    "grew": "grown",
    "knew": "known",
    "rose": "risen",
    "saw": "seen",
    "shook": "shaken",
    "spoke": "spoken",
    "stole": "stolen",
    "took": "taken",
    "threw": "thrown",
    "wore": "worn",
    "wrote": "written",
}
# After these a participle may go without its own: "they were caught and he drawn in".
_AUXILIARY = re.compile(
    r"\b(have|has|had|having|be|been|being|is|are|was|were)\b|[’'](ve|d|s)\b", re.I
)


@dataclass(frozen=True)
class MinimalPair:
    """A sentence and its ungrammatical twin.

    Attributes:
        phenomenon: what kind of fault it is.
        good, bad: the sentences.
    """

    phenomenon: str
    good: str
    bad: str


def pairs_from_text(text: str) -> Iterator[MinimalPair]:
    """At most one pair of each phenomenon for each sentence of a document, in the order of the text."""
    for sentence in sentences(text):
        for phenomenon, make_bad in _RULES.items():
            bad = make_bad(sentence)
            if bad is not None:
                yield MinimalPair(phenomenon, sentence, bad)


def sentences(text: str) -> Iterator[str]:
    """The whole sentences of a document that begin with a capital, on one line each."""
    for paragraph in re.split(r"\n\s*\n", text):
        prefix = ""
        for part in re.split(
            r"(?<=[.!?])(?=\s)|(?<=[.!?][\"”’])(?=\s)", " ".join(paragraph.split())
        ):
            prefix += part
            if prefix.endswith(_ABBREVIATIONS) or _INITIAL.search(prefix):
                continue
            sentence, prefix = prefix.strip(), ""
            if _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS and _is_whole(sentence):
                yield sentence


def _is_whole(sentence: str) -> bool:
    return re.fullmatch(r"[\"“‘]?[A-Z].*[.!?][\"”’]?", sentence) is not None


def _break_agreement(sentence: str) -> str | None:
    for subject, forms in _AGREEMENT.items():
        found = re.search(rf"{_ALONE}\b({_either_case(subject)}) ({'|'.join(forms)})\b", sentence)
        if found and not _SUBJUNCTIVE.search(sentence[: found.start()]):
            return _replace_group(sentence, found, 2, forms[found[2]])
    return None


def _break_subject_case(sentence: str) -> str | None:
    """The accusative before a finite verb."""
    pronouns = _either_case("|".join(_ACCUSATIVE))
    found = re.search(rf"{_ALONE}\b({pronouns}) (?:{_FINITE_VERBS})\b", sentence)
    if found is None:
        return None
    # "I" does not say whether a word in its place has a capital.
    if found[1] == "I" and sentence[: found.start()].endswith(_QUOTES) and found.start() > 1:
        return None
    accusative = _ACCUSATIVE.get(found[1]) or _ACCUSATIVE[found[1].lower()]
    return _replace_group(sentence, found, 1, accusative)


def _break_object_case(sentence: str) -> str | None:
    """The nominative after a preposition and before a pause."""
    found = re.search(rf"\b(?:{_PREPOSITIONS}) ({'|'.join(_NOMINATIVE)})(?=[.,;:!?])", sentence)
    return found and _replace_group(sentence, found, 1, _NOMINATIVE[found[1]])


def _break_article(sentence: str) -> str | None:
    """`an` before a consonant, `a` before a vowel; letters that sound either way are left out."""
    found = re.search(
        r"\b([Aa]) [bcdfgjklmnpqrstvwz][a-z]|\b([Aa]n) (?:[ai][a-z]|e[a-tvxyz])", sentence
    )
    if not found:
        return None
    return (
        _replace_group(sentence, found, 1, "an")
        if found[1]
        else _replace_group(sentence, found, 2, "a")
    )


def _break_participle(sentence: str) -> str | None:
    """The past tense after `have`, the participle where the past tense belongs."""
    pasts = {participle: past for past, participle in _PARTICIPLES.items()}
    found = re.search(rf"\b(?:have|has|had|having) ({'|'.join(pasts)})\b", sentence)
    if found:
        return _replace_group(sentence, found, 1, pasts[found[1]])
    pronouns = _either_case("|".join(_ACCUSATIVE))
    found = re.search(rf"\b(?:{pronouns}) ({'|'.join(_PARTICIPLES)})\b", sentence)
    if found is None or _AUXILIARY.search(sentence[: found.start()]):
        return None
    return _replace_group(sentence, found, 1, _PARTICIPLES[found[1]])


def _break_word_order(sentence: str) -> str | None:
    """A determiner before its preposition."""
    found = re.search(rf"\b({_PREPOSITIONS}|in|into) ({_DETERMINERS}) (?=[a-z])", sentence)
    if not found:
        return None
    return f"{sentence[: found.start()]}{found[2]} {found[1]} {sentence[found.end() :]}"


_RULES = {
    "subject-verb agreement": _break_agreement,
    "case of a subject": _break_subject_case,
    "case of an object": _break_object_case,
    "article": _break_article,
    "participle": _break_participle,
    "word order": _break_word_order,
}
PHENOMENA = tuple(_RULES)


def _either_case(words: str) -> str:
    """The alternatives of a regular expression as they are, and with a capital."""
    return "|".join(
        dict.fromkeys(form for word in words.split("|") for form in (word, word.title()))
    )


def _replace_group(sentence: str, found: re.Match[str], group: int, word: str) -> str:
    """With a capital where the group has one, which "I" has only at the beginning of a sentence."""
    begin, end = found.span(group)
    is_first = begin == 0 or sentence[:begin] in _QUOTES
    if is_first or (found[group] != "I" and found[group][0].isupper()):
        word = word[0].upper() + word[1:]
    return sentence[:begin] + word + sentence[end:]
