"""Grids as declared: each expands at every scale, and matched variants cost what they were matched to."""

from pathlib import Path

import pytest

from lpa.cli.study import QUESTIONS
from lpa.errors import UserError
from lpa.study.design.grid import expand_grid
from lpa.study.design.grid_files import SCALES, STUDIES, read_claims, read_grid
from lpa.study.design.study_index import recorded_dtype
from lpa.study.execution.job_runner import create_jobs


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_expands_at_every_scale(name, scale):
    study = expand_grid(name, scale)
    names = [variant.name for variant in study.variants]
    assert len(set(names)) == len(names) > 4
    assert {study.baseline} | {v.baseline for v in study.variants} <= set(names)
    for variant in study.variants:
        assert study.config(variant, 3, Path("data")).train.seed == 3
    assert {claim["variant"] for claim in read_claims().get(name, [])} <= set(names)


def test_help_asks_what_the_grids_ask():
    assert {name: read_grid(name)["question"] for name in STUDIES} == QUESTIONS


def test_the_surplus_brings_a_model_back_to_the_cost_of_the_dense_one():
    variants = {v.name: v for v in expand_grid("surplus", "130m").variants}
    dense = variants["dense"]
    assert variants["nowhere"].parameters < dense.parameters
    # 12 layers or one head more or less is the finest step there is: a few percent.
    for name in ("FFN width", "depth", "rank", "heads"):
        parameters = variants[f"{name}, equal parameters"].parameters
        assert parameters == pytest.approx(dense.parameters, rel=0.03)
        flops = variants[f"{name}, equal FLOPs"].train_flops_per_token
        assert flops == pytest.approx(dense.train_flops_per_token, rel=0.03)


def test_tuned_settings_reach_the_placement_they_are_for_but_not_tuning_itself():
    tuned = {"attention": {"optim.lr": 0.5}, "none": {"optim.lr": 0.25}}
    rates = {
        v.name: v.overrides.get("optim.lr")
        for v in expand_grid("sublayers", "nano", tuned=tuned).variants
    }
    assert rates["dense"] == 0.25
    assert rates["q"] == rates["qkvo"] == 0.5
    plain, given = expand_grid("tuning", "nano"), expand_grid("tuning", "nano", tuned=tuned)
    assert plain.variants == given.variants


def test_what_is_not_trained_counts_no_gradient():
    def flops(trainable):
        settings = {"none": {}, "attention": {"optim.trainable": trainable}}
        return {
            v.name: v.train_flops_per_token
            for v in expand_grid("sublayers", "nano", tuned=settings).variants
        }

    every, factors = flops("all"), flops("factors")
    assert factors["dense"] == every["dense"]
    assert 0.5 * every["qkvo"] < factors["qkvo"] < 0.9 * every["qkvo"]


@pytest.mark.parametrize("scale", SCALES)
def test_all_runs_of_a_study_have_one_precision_that_no_other_machine_changes(scale):
    chosen = scale in ("femto", "pico", "nano", "micro")
    declared = "float32" if scale == "tiny" else "bfloat16"
    for dtype in ("float32", "bfloat16"):
        study = expand_grid("placement", scale, dtype=dtype)
        used = {study.config(v, 0, Path("data")).train.dtype for v in study.variants}
        assert used == {dtype if chosen else declared}
        assert study.base.get("train.dtype") != "float32"  # unsaid, as in studies of before


def test_a_study_resumes_in_the_precision_of_its_directory(prepared, tmp_path):
    assert recorded_dtype(tmp_path, "femto") is None
    began = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        study = expand_grid("placement", "femto", vocab_size=300, dtype=dtype)
        began[dtype] = [job.run_id for job in create_jobs(study, 1, out, prepared)]
        assert recorded_dtype(out, "femto") == dtype
        assert recorded_dtype(out, "pico") is None
        again = expand_grid(
            "placement", "femto", vocab_size=300, dtype=recorded_dtype(out, "femto")
        )
        assert [job.run_id for job in create_jobs(again, 1, out, prepared)] == began[dtype]
    assert not set(began["float32"]) & set(began["bfloat16"])


def test_a_warm_up_takes_a_tenth_of_the_steps_at_most():
    for scale in ("pico", "130m"):
        study = expand_grid("scale", scale)
        for variant in study.variants:
            config = study.config(variant, 0, Path("data"))
            assert config.optim.warmup_steps <= -(-config.train.steps // 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "nano"), "study: got 'nothing'"),
        (("rank", "giant"), "--scale: got 'giant'"),
    ],
)
def test_what_there_is_not(arguments, message):
    with pytest.raises(UserError, match=message):
        expand_grid(*arguments)


def test_an_unknown_tuned_field_is_named():
    with pytest.raises(UserError, match=r"optim\.speed"):
        expand_grid("rank", "tiny", tuned={"none": {"optim.speed": 1}})


@pytest.fixture
def declare(monkeypatch):
    """A grid of dense and the given variants, in place of the one of ranks."""

    def replace_grid(variants, **fields):
        grid = {"question": "?", "baseline": "dense", **fields}
        grid["variants"] = {"dense": {"model.placement": "none"}} | variants
        monkeypatch.setattr("lpa.study.design.grid.read_grid", lambda name: grid)

    return replace_grid


_MATCH = {"field": "intermediate_size", "cost": "flops", "to": "dense"}


@pytest.mark.parametrize(
    ("variants", "fields", "message"),
    [
        ({"a": {"match": _MATCH | {"cost": "parameters"}}}, {}, r"a: match\.cost: .*'parameters'"),
        ({"a": {"match": _MATCH | {"field": "depth"}}}, {}, r"a: match\.field: got 'depth'"),
        ({"a": {"match": _MATCH | {"to": "b"}}, "b": {}}, {}, r"a: match\.to: got 'b'; .*dense"),
        ({"a": {"match": {"cost": "flops"}}}, {}, "a: match: .*expected field, cost, to"),
        ({"r={d/20}": {}, "r={d/24}": {}}, {}, "got 'r=1' twice at tiny"),
        ({"a": {"baseline": "dens"}}, {}, "baseline: got 'dens'; .*did you mean dense"),
        ({}, {"baseline": "none"}, "baseline: got 'none'"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(declare, variants, fields, message):
    declare(variants, **fields)
    with pytest.raises(UserError, match=message):
        expand_grid("rank", "tiny")


def test_a_match_is_to_a_variant_whose_name_has_a_number(declare):
    match = _MATCH | {"to": "r={d/8}"}
    declare({"r={d/8}": {"model.rank": "d/8"}, "a": {"model.placement": "none", "match": match}})
    _, low_rank, matched = expand_grid("rank", "nano").variants
    assert "{" not in low_rank.name
    assert matched.match == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("scale", ["nano", "130m"])
@pytest.mark.parametrize("length", [None, 2])
def test_steps_and_samples_of_a_variant_replace_tokens_of_the_scale(declare, scale, length):
    declare({"short": {"train.steps": "s/2"}, "small": {"train.steps": 7, "train.batch_size": 3}})
    study = expand_grid("rank", scale, tokens_per_parameter=length)
    dense, short, small = study.variants
    assert short.tokens == pytest.approx(dense.tokens / 2, rel=0.01)
    assert small.tokens == 21 * study.config(small, 0, Path("data")).data.seq_len
