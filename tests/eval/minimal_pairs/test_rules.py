"""Each rule breaks the grammar where it can be broken, and nothing where it cannot."""

import pytest

from lpa.eval.minimal_pairs.rules import PHENOMENA, pairs_from_text, sentences


def broken(text: str) -> dict[str, str]:
    return {pair.phenomenon: pair.bad for pair in pairs_from_text(text)}


@pytest.mark.parametrize(
    ("phenomenon", "good", "bad"),
    [
        ("subject-verb agreement", "Then he was out again.", "Then he were out again."),
        ("subject-verb agreement", "I have no time today.", "I has no time today."),
        ("subject-verb agreement", "“You are late, my boy.”", "“You is late, my boy.”"),
        ("subject-verb agreement", "What if he was there then?", None),
        ("subject-verb agreement", "He left it as it was in the old days.", None),
        ("subject-verb agreement", "It was better to say nothing.", None),
        ("subject-verb agreement", "I waited till he was come.", None),
        ("subject-verb agreement", "It is time he was gone.", "It are time he was gone."),
        ("subject-verb agreement", "High time he was gone, then!", None),
        ("subject-verb agreement", "Neither of you are to blame for it.", None),
        ("subject-verb agreement", "Neither he nor I was there.", None),
        ("subject-verb agreement", "No one but you have seen him.", None),
        (
            "subject-verb agreement",
            "He came, but you were not there.",
            "He came, but you was not there.",
        ),
        ("case of a subject", "He said nothing at all.", "Him said nothing at all."),
        ("case of a subject", "Now I had no money.", "Now me had no money."),
        ("case of a subject", "“I could not see it.”", "“Me could not see it.”"),
        ("case of a subject", "Ann cried, “They had a house!”", "Ann cried, “Them had a house!”"),
        ("case of a subject", "At last I had no money.", "At last me had no money."),
        ("case of a subject", "Ann cried, “I could not see it!”", None),
        ("case of a subject", "My brother and I went home.", None),
        ("case of a subject", "My brother or I should go home.", None),
        ("case of a subject", "No one but he could do it.", None),
        (
            "case of a subject",
            "Ann went, but he had gone home.",
            "Ann went, but him had gone home.",
        ),
        ("case of an object", "She looked at him, and left.", "She looked at he, and left."),
        ("case of an object", "He said it to me alone.", None),
        ("case of an object", "She came home before me, I think.", None),
        ("article", "It was a long way home.", "It was an long way home."),
        ("article", "He cried, “A boat is there!”", "He cried, “An boat is there!”"),
        ("article", "He cried, “An idle man!”", "He cried, “A idle man!”"),
        ("article", "He had an ewe and an eulogy.", None),
        ("article", "An idle man came in.", "A idle man came in."),
        ("article", "It took an hour of work.", None),
        ("article", "He has a unique way of it.", None),
        ("participle", "They had gone home before.", "They had went home before."),
        ("participle", "She knew the man well.", "She known the man well."),
        ("participle", "They had a house by the sea.", None),
        ("participle", "They were caught and he drew near.", None),
        ("participle", "She had asked and he gave it.", None),
        ("participle", "Had he chose so, I should be glad.", None),
        ("word order", "The end of the day came.", "The end the of day came."),
        ("word order", "It was by his right, not by mine.", None),
        ("word order", "He was born after the war.", None),
        ("word order", "Come and see us soon, friend.", None),
    ],
)
def test_rule(phenomenon, good, bad):
    assert phenomenon in PHENOMENA
    assert broken(good).get(phenomenon) == bad


def test_sentences_are_whole_and_of_a_bearable_length():
    text = (
        "CHAPTER IV\n\nMr. Smith was\nthere at noon. “Was he so?” she asked of the man. And\n\n"
        "No. Yes. " + "So " * 50 + "long."
    )
    assert list(sentences(text)) == ["Mr. Smith was there at noon."]


def test_a_sentence_does_not_end_at_an_initial():
    text = "On the bench sat M. Leblanc with his daughter. “Was it I?” he said. It was I. They had gone."
    assert list(sentences(text)) == ["On the bench sat M. Leblanc with his daughter."]
    assert list(sentences("At least it was I. So we went home with him.")) == [
        "At least it was I.",
        "So we went home with him.",
    ]


def test_a_pair_differs_in_one_place():
    for pair in pairs_from_text("He had taken a walk to the sea with them, and I was glad of it."):
        good, bad = pair.good.split(), pair.bad.split()
        assert len(good) == len(bad)
        assert sum(a != b for a, b in zip(good, bad, strict=True)) == 1 + (
            pair.phenomenon == "word order"
        )
