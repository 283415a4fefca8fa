"""The stages of a run with scripted models and a tuning that only writes files."""

import contextlib
import dataclasses
import json
import re
import types

import pytest

from agents_jax.llm import RecordedModel, ScriptedModel
from agents_jax.tools.bfcl.prompts import REFUSAL
from agents_jax.tools.toolace_r import rounds
from agents_jax.tools.toolace_r.config import (
    EvaluationConfig,
    ItemsConfig,
    RoundsConfig,
    ToolAceRConfig,
)
from agents_jax.tools.toolace_r.evaluation import measure, refinement_summary
from agents_jax.tools.toolace_r.items import Parts
from agents_jax.tools.toolace_r.refine import INSTRUCTION
from agents_jax.tools.toolace_r.report import Findings, build_report
from agents_jax.tools.toolace_r.report_files import to_markdown, write_report
from agents_jax.tools.toolace_r.rounds import WARM_UP, InterruptedRun, Stages
from agents_jax.tools.toolace_r.selection import SelectionConfig
from tests.agents_jax.tools.toolace_r.test_selection import item

POOL = tuple(item(n) for n in range(1, 21))
TEST = (*(item(n) for n in range(101, 111)), *(item(n, "irrelevance") for n in range(120, 124)))
PARTS = Parts(POOL, POOL[:8], tuple(item(n) for n in range(50, 53)), TEST, {"too long": 3})
CONFIG = ToolAceRConfig(
    data=ItemsConfig(train={"simple_python": 0}, test={"simple_python": 0}),
    selection=SelectionConfig(samples=4),
    evaluation=EvaluationConfig(fixed_steps=(1, 2), self_consistency_samples=3),
)


def skilled(skill):
    """A model that solves items up to 10 * skill (of every hundred): the easy ones always, harder
    ones in some samples; asked to look again it corrects itself.
    """

    def answer(request):
        users = [m["content"] for m in request.messages if m["role"] == "user"]
        again = users[-1] == INSTRUCTION
        number = int(re.search(r"Question (\d+)", users[-2 if again else -1]).group(1))
        if number >= 120:
            return REFUSAL
        if again or number % 100 <= 10 * skill - request.sample:
            return f"[f{number}(a={number})]"
        return f"[f{number}(a=0)]"

    return answer


def test_votes_of_different_items_are_drawn_independently():
    asked = []

    def answer(request):
        asked.append(request)
        return skilled(1.0)(request)

    point = measure(ScriptedModel(answer), TEST, CONFIG, thorough=True)
    drawn = [request for request in asked if request.temperature > 0]
    assert len({request.seed for request in drawn}) == len(TEST)
    assert len({(request.seed, request.sample) for request in drawn}) == 3 * len(TEST)
    assert [len(samples.texts) for samples in point.samples] == [3] * len(TEST)


class Killed(Exception):
    """Stands for the end of the process in the middle of a batch."""


class Models:
    """Checkpoints by name: the more rounds, the more skilled."""

    def __init__(self, folder, fail_after=None, skills=None):
        self.folder, self.fail_after = folder, fail_after
        self.skills = skills or {"base": 0, WARM_UP: 0.8, "round_1": 1.2, "round_2": 1.6}
        self.asked, self.loaded = [], []

    @contextlib.contextmanager
    def open(self, checkpoint):
        answer = skilled(self.skills[checkpoint.name.rpartition("/")[2]])

        def counted(request):
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise Killed
            self.asked.append(request)
            return answer(request)

        scripted = ScriptedModel(counted, name=checkpoint.name, concurrency=1)
        with RecordedModel(self.folder / "answers" / f"{checkpoint.name}.jsonl", scripted) as model:
            yield model

    def load(self, checkpoint):
        self.loaded.append(checkpoint)
        return checkpoint


@pytest.fixture
def tuned(monkeypatch):
    """What was tuned: (name, settings, chats, start)."""
    calls = []

    def train(settings, folder, *, examples, held_out, model, say):
        calls.append((folder.name, settings, list(examples), model))
        assert len(held_out) == 3
        (folder / "adapter").mkdir(parents=True)
        (folder / "report").mkdir()
        (folder / "report" / "report.json").write_text("{}")
        return types.SimpleNamespace(fit=types.SimpleNamespace(interrupted=False), exit_code=0)

    monkeypatch.setattr(rounds, "train", train)
    return calls


def run(folder, config=CONFIG, models=None, **options):
    models = models or Models(folder)
    stages = Stages(config, folder, models, PARTS, say=lambda text: None, **options)
    points = stages.baselines()
    warm, points[WARM_UP] = stages.warm_up()
    arms = {}
    for arm in config.arms:
        arms[arm] = stages.run_arm(arm, warm, arms.get("toolace_r"))
        points |= {f"{arm}/round_{r.number}": r.point for r in arms[arm].rounds}
    return Findings(config, PARTS, points, arms, stages.timings.seconds)


def test_each_round_learns_from_what_the_last_model_solves(tmp_path, tuned):
    found = run(tmp_path)
    first, second = found.arms["toolace_r"].rounds
    # With skill .8 items 1 to 8 are solved at least once, and with 1.2 items 1 to 12.
    assert first.selection.ids == tuple(f"simple_python_{n}" for n in range(1, 9))
    assert second.selection.ids == tuple(f"simple_python_{n}" for n in range(1, 13))
    assert [name for name, *_ in tuned] == [WARM_UP, "round_1", "round_2"]
    assert [len(chats) for _, _, chats, _ in tuned] == [8, 16, 24]
    steps = [settings.train.steps for _, settings, _, _ in tuned]
    assert steps == [CONFIG.rounds.warm_up_steps, CONFIG.rounds.steps, CONFIG.rounds.steps]
    assert all(s.data.train_on == "last_assistant" for _, s, _, _ in tuned)
    assert all(start.folders == () for *_, start in tuned)  # each from the base
    kept = json.loads((tmp_path / "rounds/toolace_r/round_2/selection.json").read_text())
    assert kept["ids"] == list(second.selection.ids)
    lines = (tmp_path / "rounds/toolace_r/round_2/corpus.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(second.corpus.chats)


def test_the_first_answers_come_from_the_current_model(tmp_path, tuned):
    found = run(tmp_path)
    for round_, name in zip(found.arms["toolace_r"].rounds, (WARM_UP, "round_1"), strict=False):
        file = tmp_path / "answers" / f"{name if name == WARM_UP else 'toolace_r/' + name}.jsonl"
        said = file.read_text()
        for example in round_.corpus.refinements:
            assert json.dumps(example.first_answer)[1:-1] in said
        failed = [n for n in round_.selection.ids if round_.selection.solved[n] < 4]
        wrong = sum(example.wrong for example in round_.corpus.refinements)
        assert wrong == min(len(failed), len(round_.corpus.refinements) // 2) > 0


def test_rounds_end_where_the_selection_no_longer_grows(tmp_path, tuned):
    skills = {"base": 0, WARM_UP: 0.8, "round_1": 0.8, "round_2": 2.0}
    config = dataclasses.replace(
        CONFIG, arms=("toolace_r", "random_selection"), rounds=RoundsConfig(max_rounds=4)
    )
    found = run(tmp_path, config, Models(tmp_path, skills=skills))
    main, other = found.arms.values()
    assert len(main.rounds) == len(other.rounds) == 1 and "did not grow" in main.ended
    assert main.last_selection.ids == main.rounds[0].selection.ids
    assert main.rounds[0].point.samples is not None  # its last model is measured in full


def test_arms_differ_in_what_they_say_and_nothing_else(tmp_path, tuned):
    arms = ("toolace_r", "random_selection", "no_selection", "no_refinement_data",
            "no_kept_correct", "continued", "sft")  # fmt: skip
    config = dataclasses.replace(CONFIG, arms=arms)
    found = run(tmp_path, config)
    sizes = {
        a: [len(r.selection.ids) for r in f.rounds if r.selection] for a, f in found.arms.items()
    }
    assert sizes["random_selection"] == sizes["toolace_r"] == [8, 12]
    assert sizes["no_selection"] == [20, 20] and sizes["no_refinement_data"] == [8, 12]
    random = found.arms["random_selection"].rounds[0].selection
    assert set(random.ids) != set(found.arms["toolace_r"].rounds[0].selection.ids)
    counts = {arm: f.rounds[-1].corpus.counts() for arm, f in found.arms.items()}
    assert counts["no_refinement_data"]["refinement"] == counts["sft"]["refinement"] == 0
    assert counts["no_kept_correct"]["wrong"] == counts["no_kept_correct"]["refinement"] > 0
    assert counts["sft"]["direct"] == 20 and len(found.arms["sft"].rounds) == 1
    assert {s.train.steps for name, s, *_ in tuned if name != WARM_UP} == {CONFIG.rounds.steps}
    before = found.arms["continued"].rounds[1].checkpoint.folders
    assert before == tuple(
        tmp_path / "tuning" / name / "adapter"
        for name in (WARM_UP, "continued/round_1", "continued/round_2")
    )
    assert all(len(r.checkpoint.folders) == 1 for r in found.arms["toolace_r"].rounds)


def test_a_killed_run_asks_only_what_it_lacks(tmp_path, tuned):
    whole = Models(tmp_path / "whole")
    wanted = run(tmp_path / "whole", models=whole)
    total, done, starts = len(whole.asked), 0, 0
    trained = len(tuned)
    while True:
        models = Models(tmp_path / "killed", fail_after=90)
        starts += 1
        try:
            found = run(tmp_path / "killed", models=models)
            done += len(models.asked)
            break
        except Killed:
            done += len(models.asked)
    assert starts > 3 and done == total  # not one answer was asked for twice
    assert len(tuned) == 2 * trained  # and nothing tuned twice
    assert build_report(found)["systems"] == build_report(wanted)["systems"]
    assert found.arms["toolace_r"].rounds[1].corpus == wanted.arms["toolace_r"].rounds[1].corpus


def test_evaluation_alone_refuses_what_is_not_tuned(tmp_path, tuned):
    with pytest.raises(ValueError, match=r"warm_up is not tuned yet.*--mode=train"):
        run(tmp_path, trains=False)
    run(tmp_path)
    again = Models(tmp_path)
    run(tmp_path, models=again, trains=False)
    assert again.asked == []


@pytest.mark.parametrize(("wanted", "numbers"), [
    (0, [*range(101, 111), *range(120, 124)]), (99, [*range(101, 111), *range(120, 124)]),
    (4, [101, 104, 108, 120]), (7, [101, 103, 105, 107, 109, 120, 122]),
])  # fmt: skip
def test_baselines_are_measured_on_items_of_all_categories(tmp_path, wanted, numbers):
    evaluation = dataclasses.replace(CONFIG.evaluation, baseline_items=wanted)
    config = dataclasses.replace(CONFIG, evaluation=evaluation)
    stages = Stages(config, tmp_path, Models(tmp_path), PARTS, say=lambda text: None)
    for point in stages.baselines().values():
        assert [int(i.id.rsplit("_", 1)[1]) for i in point.items] == numbers


def test_interrupted_tuning_ends_the_run(tmp_path, tuned, monkeypatch):
    def train(*_, **__):
        return types.SimpleNamespace(fit=types.SimpleNamespace(interrupted=True), exit_code=7)

    monkeypatch.setattr(rounds, "train", train)
    with pytest.raises(InterruptedRun) as caught:
        run(tmp_path)
    assert caught.value.exit_code == 7


def test_the_report_counts_what_happened(tmp_path, tuned):
    found = run(tmp_path)
    report = build_report(found)
    systems = report["systems"]
    # Skill 1.2 solves items up to 112 at once; looking again, all.
    assert systems["warm_up"]["total"]["calls"]["rate"] == 0.8
    assert systems["warm_up + adaptive"]["total"]["calls"]["rate"] == 1.0
    assert systems["toolace_r/round_2"]["total"]["calls"]["rate"] == 1.0
    assert systems["zero_shot"]["total"]["irrelevance"]["rate"] == 1.0
    warm = report["refinement"][WARM_UP]["calls"]
    assert (warm["wrong_to_right"], warm["right_to_wrong"], warm["cycles"]) == (2, 0, 0)
    assert warm["accuracy_at_step"] == [0.8, 1.0, 1.0] and warm["steps"] == [0, 8, 2]
    assert warm["mean_steps"] == 1.2 and warm["stops"] == {"equal": 10}
    n = len(TEST)
    assert systems["warm_up + adaptive"]["per_query"]["model_calls"] == (n + n + 2) / n
    pairs = {(c["first"], c["second"], c["items"]): c for c in report["comparisons"]}
    refined = pairs["warm_up", "warm_up + adaptive", "calls"]
    assert (refined["gained"], refined["lost"], refined["num_items"]) == (2, 0, 10)
    assert ("toolace_r/round_2 + vote", "toolace_r/round_2 + adaptive", "calls") in pairs
    rounds_ = report["rounds"]["toolace_r"]["rounds"]
    assert rounds_[1]["overlap_with_last"] == 8 and sum(map(sum, rounds_[1]["transitions"])) == 20
    vote = report["vote"]["toolace_r/round_2"]
    budget = systems["toolace_r/round_2 + adaptive"]["per_query"]
    spent = vote["per_query"][vote["samples_at_equal_cost"] - 1]
    assert sum(spent[k] for k in ("prompt_tokens", "new_tokens")) <= sum(
        budget[k] for k in ("prompt_tokens", "new_tokens")
    )
    text = to_markdown(report)
    assert "warm_up + adaptive" in text and "Apache-2.0" in text and "nan" not in text.lower()
    write_report(tmp_path / "report", report)
    names = {p.name for p in (tmp_path / "report").iterdir()}
    assert names == {"report.json", "report.md", "refinement.png", "selection.png"}
    assert json.loads((tmp_path / "report/report.json").read_text())["systems"] == systems
    kept = json.loads((tmp_path / "evaluation/warm_up.json").read_text())
    assert kept[8]["correct"] is False and kept[8]["refined"]["correct"] == [False, True, True]


def test_refinement_is_summed_up_by_hand():
    from agents_jax.tools.agent import Cost
    from agents_jax.tools.toolace_r.refine import Refined

    def made(number, *answers, stop="equal", cycle=0):
        texts = tuple(f"[f{number}(a={a})]" for a in answers)
        return Refined(texts, (Cost(1),) * len(texts), stop, cycle)

    items = [item(n) for n in (1, 2, 3, 4)]
    runs = [
        made(1, 1, 1), made(2, 0, 2, 2), made(3, 3, 0, 0),
        made(4, 0, 4, 0, stop="max_steps", cycle=2),
    ]  # fmt: skip
    found = refinement_summary(items, runs)["calls"]
    assert found["accuracy_at_step"] == [0.5, 0.75, 0.5]
    assert (found["wrong_to_right"], found["right_to_wrong"], found["changed"]) == (1, 1, 2)
    assert found["steps"] == [0, 1, 3] and found["mean_steps"] == 1.75
    assert found["stops"] == {"equal": 3, "max_steps": 1} and found["cycles"] == 1
