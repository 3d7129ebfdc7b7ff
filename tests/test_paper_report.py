"""The paper's numbers as data, and its tables in our layout."""

import re
from types import SimpleNamespace

import pytest
from conftest import ROOT

from guided_distill.distill.distillations import TWO_STUDENT, round_costs
from guided_distill.evaluation.contenders import list_contenders
from guided_distill.report.paper_report import Run, introduction
from guided_distill.report.paper_tables import (
    load_paper_results,
    misprints,
    naive_against_ddim,
    sampler_table,
    table_1,
    table_2,
    table_3,
    training_costs,
)
from guided_distill.run.settings import load_config
from guided_distill.run.stages import plan_stages

GAIN = {"fid": 0.5, "is": -0.25}  # ours less the paper's, below


def ours_like(data):
    """Rows as an evaluation makes them, each a fixed step away from the paper's."""
    return [
        {key: row[key] for key in ("model", "sampler", "num_steps", "w")}
        | {metric: row[metric] + gain for metric, gain in GAIN.items()}
        | {"network_calls": row["num_steps"] * (2 if row["model"] == "two_student" else 1)}
        for row in load_paper_results(data)
    ]


COSTS = {("student", 1): 6_460_000, ("stochastic", 1): 6_460_000, ("two_student", 1): 9_500_000}


def test_paper_results_are_whole():
    """18 models at 5 weights in Table 2 for each data set, and 24 lines of Table 3."""
    imagenet, cifar = load_paper_results("imagenet64"), load_paper_results("cifar10")
    assert len(imagenet) == 18 * 5 and len(cifar) == 18 * 5 + 24
    for rows in (imagenet, cifar):
        keys = [(row["model"], row["num_steps"], row["w"]) for row in rows]
        assert len(set(keys)) == len(keys)
        assert {row["w"] for row in rows} == {0.0, 0.3, 1.0, 2.0, 4.0}
    assert load_paper_results("digits") == []


def test_paper_results_follow_the_papers_claims():
    """Laws of the numbers themselves, which a slip of the pen would break."""
    for data in ("imagenet64", "cifar10"):
        by_key = {(r["model"], r["num_steps"], r["w"]): r for r in load_paper_results(data)}
        teacher = [by_key["teacher", 1024, w] for w in (0.0, 0.3, 1.0, 2.0, 4.0)]
        if data == "imagenet64":
            scores = [row["is"] for row in teacher]
            assert scores == sorted(scores)
        for model in ("student", "stochastic"):
            at_0 = [by_key[model, n, 0.0]["fid"] for n in (1, 2, 4, 8)]
            assert at_0 == sorted(at_0, reverse=True)
        for w in (0.0, 0.3, 1.0, 2.0):
            assert by_key["student", 16, w]["fid"] < by_key["ddim", 16, w]["fid"] * 1.25
    naive = [r for r in load_paper_results("cifar10") if r["model"] == "two_student"]
    assert min(r["fid"] for r in naive if r["num_steps"] == 1) > 200
    assert [r for r in naive if (r["num_steps"], r["w"]) == (64, 0.3)] == []  # not in the paper


def test_the_two_misprints_are_corrected_and_marked():
    marked = [row for row in load_paper_results("imagenet64") if row["note"]]
    assert [(r["num_steps"], r["w"], r["fid"], r["is"]) for r in marked] == [
        (32, 0.3, 3.45, 68.03),
        (64, 0.3, 2.80, 72.55),
    ]
    cifar = {(r["model"], r["num_steps"], r["w"]): r for r in load_paper_results("cifar10")}
    for row in marked:
        printed = cifar["ddim", row["num_steps"], 0.3]
        assert f"{printed['fid']:.2f} and {printed['is']:.2f}" in row["note"]
    text = " ".join(misprints(load_paper_results("imagenet64")))
    assert "DDIM 32x2-step at w = 0.3: Table 1 prints 7.47" in text and "the right 3.45" in text


def test_only_the_papers_own_data_are_set_beside_its_numbers():
    """`imagenet_resized` was squashed, not cropped: distances on it cannot be compared."""
    papers = load_paper_results("imagenet64")
    assert load_paper_results("imagenet2012-64x64") == papers != []
    for data in ("imagenet2012-32x32", "imagenet_resized/64x64", "imagenet_resized/64x64-64x64"):
        assert load_paper_results(data) == []


@pytest.mark.parametrize("data", ["imagenet64", "cifar10"])
def test_table_2_sets_ours_beside_the_papers_with_the_difference(data):
    rows = [row for row in ours_like(data) if row["model"] != "two_student"]
    lines = table_2(rows, COSTS, load_paper_results(data), differences=True).splitlines()
    assert "difference" not in table_2(rows, COSTS, load_paper_results(data))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    header, body = cells[0], cells[2:]
    assert header[2:5] == ["million evaluations", "FD", "IS"]
    assert header[5:] == ["FD, paper", "FD, difference", "IS, paper", "IS, difference"]
    assert len(body) == 5 * (5 + 4 + 3 + 1)
    for line in body:
        pairs = line[6].split(" / "), line[8].split(" / ")
        assert set(pairs[0]) == {"+0.50"} and set(pairs[1]) == {"-0.25"}
    first = next(line for line in body if line[1] == "Ours 1-step (D/S)")
    if data == "cifar10":
        assert first[5] == "8.34 / 10.65" and first[3] == "8.84 / 11.15"
    assert first[2] == "6.46 / 6.46"


@pytest.mark.parametrize(("data", "has"), [("cifar10", True), ("digits", False)])
def test_a_run_of_other_data_than_the_papers_says_that_it_stands_alone(data, has):
    provenance = {"data": data, "features": "classifier-a", "reference": {"n": 9}, "stages": {}}
    text = introduction(Run("a", [{"n": 500}], provenance, [], {}))
    assert ("The paper has no numbers for digits: ours stand alone" in text) is not has
    assert ("The paper's numbers stand beside" in text) is has


def test_table_1_marks_the_best_of_each_column():
    text = table_1(ours_like("imagenet64"), COSTS)
    bold = re.findall(r"\*\*([\d.]+)\*\*", text)
    # At w = 0, 0.3, 1, 2, 4, as in the paper's Table 1 where it prints bold.
    assert bold[:2] and f"{2.10 + 0.5:.2f}" in bold and f"{57.81 - 0.25:.2f}" in bold
    assert f"{2.05 + 0.5:.2f}" in bold and f"{17.85 + 0.5:.2f}" in bold
    assert "Ours 2-step" not in text and "Ours 4-step (D/S)" in text


def test_table_3_stands_beside_the_papers_naive_students():
    lines = table_3(ours_like("cifar10"), COSTS, load_paper_results("cifar10")).splitlines()
    assert len(lines) == 2 + 24 and lines[0].count("million evaluations") == 2
    assert "9.50" in lines[2] and "6.46" in lines[2]
    assert "212.20" in lines[2] and "212.70" in lines[2]
    assert table_3([row for row in ours_like("imagenet64")], COSTS) == ""


def evaluated(config):
    """{(model, N, w)} of the rows that an evaluation of a config's finished stages makes."""
    finished = {
        stage.name: SimpleNamespace(
            record=dict(
                name=stage.name, stage=stage.kind, algorithm=stage.algorithm,
                num_steps=stage.num_steps, w_range=stage.w_range,
            )
        )
        for stage in plan_stages(config)
    }  # fmt: skip
    contenders = list_contenders(
        finished,
        SimpleNamespace(of=lambda record, sampler: None, ancestral_mix=0.0),
        start_steps=config.step_two.start_steps,
        num_steps=config.evaluation.num_steps,
        baselines=config.evaluation.baselines,
        baseline_num_steps=config.evaluation.baseline_num_steps,
    )
    return {
        (c.model, c.num_steps, w) for c in contenders for w in config.evaluation.w if c.knows(w)
    }


@pytest.mark.parametrize(
    ("name", "data"), [("cifar10", "cifar10"), ("imagenet64", "imagenet2012-64x64")]
)
def test_the_paper_variants_fill_every_line_of_the_papers_tables(name, data):
    paper = load_paper_results(data)
    asked = {(row["model"], row["num_steps"], row["w"]) for row in paper}
    config = load_config(f"{ROOT / 'configs' / name}.py:paper")
    rows = evaluated(config)
    assert asked and asked <= rows
    if any(model == TWO_STUDENT.model for model, *_ in asked):
        ours = [
            dict(model=model, num_steps=n, w=w, network_calls=2 * n, fid=1.0) | {"is": 1.0}
            for model, n, w in rows
        ]
        table = table_3(ours, COSTS, paper)
        printed = [row for row in paper if row["model"] == TWO_STUDENT.model]
        assert printed and all(f"{row['fid']:.2f}" in table for row in printed)


def test_the_naive_variant_alone_fills_table_3():
    naive = {
        (row["model"], row["num_steps"], row["w"])
        for row in load_paper_results("cifar10")
        if row["model"] == TWO_STUDENT.model
    }
    assert naive <= evaluated(load_config(f"{ROOT / 'configs' / 'cifar10.py'}:two_student"))


def test_naive_students_are_counted_against_ddim():
    rows = ours_like("cifar10")
    assert naive_against_ddim(rows).endswith("in 9 of 9 cases.")  # N = 16, 64 at five w but one


def test_samplers_are_compared_only_where_both_are_there():
    rows = ours_like("cifar10")
    text = sampler_table(rows)
    first = next(line for line in text.splitlines() if line.startswith("| 1 "))
    assert f"{(10.65 + 0.5) / (8.34 + 0.5):.2f}" in first
    assert sampler_table([r for r in rows if r["model"] != "student"]) == ""


def test_training_costs_add_up_over_the_rounds():
    def stage(n, evaluations, algorithm="deterministic"):
        return dict(num_steps=n, factor=2, evaluations=evaluations, algorithm=algorithm)

    stages = {f"step_two/deterministic/{n:04d}": stage(n, 10 * n) for n in (1, 2, 4)}
    stages["step_two/stochastic/0001"] = stage(1, 1000, "stochastic")
    rows = [dict(model="student", num_steps=n, w=w, fid=n + w) for n in (1, 4) for w in (0.0, 1.0)]
    costs = training_costs("a", rows, stages)
    assert [(c["num_steps"], c["evaluations"]) for c in costs] == [(4, 40), (1, 70)]
    assert costs[1]["fid"] == {0.0: 1.0, 1.0: 2.0}


def test_each_familys_rounds_add_up_by_themselves():
    def stage(n, evaluations, algorithm):
        return dict(num_steps=n, evaluations=evaluations, algorithm=algorithm)

    costs = round_costs(
        {
            "teacher": stage(None, 10**9, None),
            "step_one": stage(None, 10**9, None),
            "step_two/deterministic/0002": stage(2, 5, "deterministic"),
            "step_two/deterministic/0001": stage(1, 7, "deterministic"),
            "step_two/two_student/0001": stage(1, 11, "two_student"),
            "single_w/0.3/step_two/deterministic/0002": stage(2, 13, "deterministic"),
        }
    )
    assert costs == {
        ("student", 2): 5,
        ("student", 1): 12,
        ("two_student", 1): 11,
        ("single_w", 2): 13,
    }


def test_the_papers_numbers_are_installed_with_the_package():
    assert "paper_results.csv" in (ROOT / "setup.py").read_text()
