from lpa.model import PRESETS, parameter_count, preset_config


def test_presets_are_listed_with_their_counts(lpa):
    listed = lpa("presets", "--json").json
    assert list(listed) == list(PRESETS)
    for name, entry in listed.items():
        assert entry["parameters"]["ffn"] == parameter_count(preset_config(name, placement="ffn"))
    assert listed["paper-370m-s1"]["origin"] == "published"
    assert listed["3b"]["origin"] == "modern"
    table = lpa("presets", "--placement", "attention").stdout
    assert listed["paper-130m-s2"]["parameters"]["attention"] == 115_263_488
    assert "115M" in table
    assert "134M" not in table


def test_an_unknown_placement_is_refused(lpa):
    finished = lpa("presets", "--placement", "some")
    assert finished.code == 2
    assert "--placement: got some; expected one of none, attention, ffn, all" in finished.stderr
