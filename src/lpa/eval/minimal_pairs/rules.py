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
    "No.",
    "vol.",
    "i.e.",
    "e.g.",
)
_MIN_WORDS, _MAX_WORDS = 5, 40

# After these the subjunctive stands, where "he were" is right.
_SUBJUNCTIVE = re.compile(r"\b(if|though|wish\w*|unless|lest|that|whether|suppose|would)\b", re.I)

_AGREEMENT = {
    "he|she|it": {"was": "were", "is": "are", "has": "have", "does": "do"},
    "I": {"was": "were", "am": "is", "have": "has", "do": "does"},
    "we|you|they": {"were": "was", "are": "is", "have": "has", "do": "does"},
}
_ACCUSATIVE = {"I": "me", "he": "him", "she": "her", "we": "us", "they": "them"}
_NOMINATIVE = {"me": "I", "him": "he", "us": "we", "them": "they"}
_FINITE_VERBS = "was|were|had|could|would|said|did|went|came|knew|must|should|asked|replied"
_PREPOSITIONS = "of|to|with|for|from|by|at|upon|about|against|towards|toward|after|before"
_DETERMINERS = "the|a|an|his|my|our|their|its|your"
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
            if prefix.endswith(_ABBREVIATIONS):
                continue
            sentence, prefix = prefix.strip(), ""
            if _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS and _is_whole(sentence):
                yield sentence


def _is_whole(sentence: str) -> bool:
    return re.fullmatch(r"[\"“‘]?[A-Z].*[.!?][\"”’]?", sentence) is not None


def _break_agreement(sentence: str) -> str | None:
    for subject, forms in _AGREEMENT.items():
        found = re.search(rf"\b({_either_case(subject)}) ({'|'.join(forms)})\b", sentence)
        if found and not _SUBJUNCTIVE.search(sentence[: found.start()]):
            return _replace_group(sentence, found, 2, forms[found[2]])
    return None


def _break_subject_case(sentence: str) -> str | None:
    """The accusative before a finite verb."""
    pronouns = _either_case("|".join(_ACCUSATIVE))
    found = re.search(rf"(?<!and )\b({pronouns}) (?:{_FINITE_VERBS})\b", sentence)
    return found and _replace_group(sentence, found, 1, _in_other_case(found[1], _ACCUSATIVE))


def _break_object_case(sentence: str) -> str | None:
    """The nominative after a preposition and before a pause."""
    found = re.search(rf"\b(?:{_PREPOSITIONS}) ({'|'.join(_NOMINATIVE)})(?=[.,;:!?])", sentence)
    return found and _replace_group(sentence, found, 1, _NOMINATIVE[found[1]])


def _break_article(sentence: str) -> str | None:
    """`an` before a consonant, `a` before a vowel; letters that sound either way are left out."""
    found = re.search(r"\b([Aa]) [bcdfgjklmnpqrstvwz][a-z]|\b([Aa]n) [aei][a-z]", sentence)
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
    return found and _replace_group(sentence, found, 1, _PARTICIPLES[found[1]])


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
    """Of alternatives of a regular expression: as they are, and with a capital."""
    return "|".join(
        dict.fromkeys(form for word in words.split("|") for form in (word, word.title()))
    )


def _in_other_case(pronoun: str, cases: dict[str, str]) -> str:
    """With a capital where the pronoun has one that is not its own."""
    if pronoun in cases:
        # At the start of a sentence "I" does not say whether the word itself has a capital.
        return cases[pronoun]
    return cases[pronoun.lower()].title()


def _replace_group(sentence: str, found: re.Match[str], group: int, word: str) -> str:
    begin, end = found.span(group)
    if begin == 0 or sentence[:begin] in ('"', "“", "‘"):
        word = word[0].upper() + word[1:]
    return sentence[:begin] + word + sentence[end:]
