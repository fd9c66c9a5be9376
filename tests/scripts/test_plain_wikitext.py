import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "plain_wikitext"


def plain(tmp_path, text):
    (tmp_path / "in.txt").write_text(text)
    subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "in.txt", tmp_path / "out.jsonl"], check=True
    )
    return [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").open()]


def test_articles_in_the_spelling_of_books(tmp_path):
    text = (
        " \n = A Song = \n \n"
        ' He had a role in " Teddy \'s Story " ( 2001 ) , worth $ 3 @,@ 000 @-@ odd . '
        "<unk> left . It ended ! \n"
        " = = Charts = = \n \n"
        " Only <unk> here . \n"
        " = Another = \n"
        ' It said : " no . He <unk> " . So be it ; 5 % . \n'
    )
    assert plain(tmp_path, text) == [
        "A Song\n\nHe had a role in “Teddy’s Story” (2001), worth $3,000-odd. It ended!\n\nCharts",
        "Another\n\nIt said: no. So be it; 5%.",
    ]
