"""The stages round the main job: cold start, language reward, rejection sampling, SFT, reward
model, and the scripts."""

import glob
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections import Counter

import pytest
import safetensors.torch
import torch
from conftest import ROOT, read_csv, stopped_in_step, write_rows
from test_train import refused, repository  # noqa: F401

import evaluate
import rewards
import train
from data import corpus, general, jsonl, load_task, pairs
from data.tokenizer import Tokenizer
from model import GPT, Critic
from plumbing import checkpoint
from plumbing.run_folder import Log
from stages import rejection, reward_model, sft
from start.task import build_task

REQUEST = {
    "prompt": "User: name 2 animals and 3 colours\nAssistant:",
    "language": "en",
    "asked": {"animals": 2, "colours": 3},
    "kind": "general",
    "untagged": True,
}


# --- The general task -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, faults",
    [
        ("cat dog red blue green", 0),
        ("green dog red blue cat", 0),
        ("", 5),
        ("cat dog red blue", 1),
        ("cat dog red blue blue", 2),
        ("cat dog hen red blue green", 1),
        ("cat perro red blue green", 2),
        ("cat dog plum red blue green", 1),
        ("cat, dog", 5),
    ],
)
def test_faults_by_hand(answer, faults):
    assert general.faults(REQUEST, answer) == faults


def test_preference_is_win_tie_or_loss_of_the_answer():
    def preference(answers, response):
        return rewards.accuracy(REQUEST | {"answers": answers}, response)

    one_fault = ["cat dog red blue"]
    tagged = "<think>\n2 animals\n</think>\n<answer>{}</answer>"
    assert preference(one_fault, tagged.format("cat dog red blue green") + "<|end|>") == 1.0
    assert preference(one_fault, tagged.format("cat dog red red blue green")) == 0.5
    assert preference(one_fault, tagged.format("cat")) == 0.0
    # without tags all of it is the answer
    assert preference(one_fault, "cat dog red blue green<|end|>") == 1.0
    assert preference(["cat", "cat dog red blue green"], "cat dog red blue green") == 0.75


def prompts_of(rows):
    return {row["prompt"] for row in rows}


def test_what_is_held_out_is_nowhere_in_either_order():
    train, held_out = general.requests()
    assert len(train) + len(held_out) == 2 * 12 * 16 and len(held_out) >= 64

    def in_any_order(requests):
        return {frozenset(request["asked"].items()) for request in requests}

    assert not in_any_order(train) & in_any_order(held_out)
    documents = corpus.corpus(random.Random(1))
    read = prompts_of(itertools.islice(documents, 30000))
    read = {prompt for prompt in read if prompt.split()[1] in ("name", "nombra")}
    assert read == prompts_of(train)
    task = load_task("general")
    assert prompts_of(task.train) == prompts_of(train)
    assert prompts_of(task.held_out["general"]) == prompts_of(held_out)


def test_lists_are_about_which_word_it_is():
    rng = random.Random(0)
    kinds = Counter()
    for _ in range(500):
        row = general.word_list(rng)
        _, *words = row["prompt"].removesuffix("\nAssistant:").split()
        answer = row["response"].split()
        [topic] = [
            (name, set(topic))
            for topics in general.TOPICS.values()
            for name, topic in topics.items()
            if set(answer) <= set(topic)
        ]
        if words[0] in ("repeat", "repite"):
            assert answer == words[1:]
        elif words[0] in ("once", "una"):
            said = words[1:] if words[0] == "once" else words[2:]
            assert len(answer) == len(set(answer)) and set(answer) == set(said)
            assert answer == sorted(answer, key=said.index)
        else:
            assert words[0] == topic[0] and words[1] in ("but", "menos")
            assert sorted(answer + list(set(words[2:]))) == sorted(topic[1])
        kinds[words[0] if words[0] not in ("una",) else "once"] += 1
    assert kinds["repeat"] > 40 and kinds["once"] > 80 and len(kinds) > 8


def test_authors_err():
    rng = random.Random(0)
    faults = Counter()
    for problem in general.requests()[0]:
        for _ in range(5):
            faults[general.faults(problem, general.author(rng, problem))] += 1
    assert 0.2 < faults[0] / faults.total() < 0.7 and max(faults) >= 4


def test_no_word_is_of_two_topics_or_of_both_languages():
    words = []
    for topics in general.TOPICS.values():
        for topic in topics.values():
            words += topic
    assert len(words) == len(set(words))


def test_rows_are_written_whole_or_not_at_all_and_of_a_known_kind(tmp_path, monkeypatch):
    def generate(kind, path):
        kinds = {"good": itertools.repeat({"a": 1}), "bad": ({"a": 1 // n} for n in (1, 0))}
        monkeypatch.setattr(sys, "argv", ["x", kind, "2", str(path)])
        jsonl.generate(kinds)

    generate("good", tmp_path / "good")
    assert (tmp_path / "good").read_text() == '{"a": 1}\n' * 2
    with pytest.raises(ZeroDivisionError):
        generate("bad", tmp_path / "bad")
    with pytest.raises(SystemExit):
        generate("goods", tmp_path / "goods")
    assert not (tmp_path / "bad").exists() and not (tmp_path / "goods").exists()


def test_pairs_are_mislabelled_one_time_in_twenty():
    requests = {request["prompt"]: request for request in general.requests()[0]}
    drawn = list(itertools.islice(general.pairs(random.Random(1)), 2000))
    assert prompts_of(drawn) <= set(requests)
    wrong = 0
    for pair in drawn:
        request = requests[pair["prompt"]]
        better, worse = (rewards.extract_answer(pair[side]) for side in ("better", "worse"))
        wrong += general.faults(request, better) > general.faults(request, worse)
        assert rewards.format_reward(pair["better"]) == rewards.format_reward(pair["worse"]) == 1
    assert 60 <= wrong <= 140


# --- What is trained on -----------------------------------------------------------------------


def test_the_cold_start_is_right_checked_well_formed_and_in_one_language():
    rows = list(itertools.islice(corpus.cold_start(random.Random(0)), 200))
    verbs = set()
    for row in rows:
        _, verb, target, _, *numbers, _ = row["prompt"].split()
        numbers = [int(number) for number in numbers]
        problem = {"kind": "countdown", "pick": 2, "target": int(target), "numbers": numbers}
        response = row["response"]
        language = "en" if verb == "make" else "es"
        assert rewards.accuracy(problem, response) == rewards.format_reward(response) == 1
        assert rewards.language_consistency(response, language) == 1
        assert rewards.reflections(response)
        assert pairs.part(problem["numbers"], problem["target"]) == "train"
        verbs.add(verb)
    assert verbs == {"make", "forma"}


def test_the_corpus_has_both_languages_and_the_careful_mix_them():
    rows = list(itertools.islice(corpus.corpus(random.Random(0)), 4000))
    verbs = Counter(row["prompt"].split()[1] for row in rows)
    assert 0.09 < (verbs["name"] + verbs["nombra"]) / len(rows) < 0.16
    assert 0.4 < verbs["forma"] / (verbs["forma"] + verbs["make"]) < 0.6

    mixed = {True: [], False: []}  # by whether a search is checked
    for row in rows:
        if row["prompt"].split()[1] in ("name", "nombra") or row["response"].count("\n") <= 6:
            continue
        checked = rewards.reflections(row["response"].replace("error", "")) > 0
        mixed[checked].append(0 < rewards.language_consistency(row["response"], "en") < 1)
    share = {checked: sum(values) / len(values) for checked, values in mixed.items()}
    assert share[True] > share[False] + 0.1


def test_joined_tasks_are_trained_on_in_equal_shares():
    task = load_task("pairs+general")
    assert [problem["kind"] for problem in task.train[:4]] == ["pairs", "general"] * 2
    kinds = Counter(problem["kind"] for problem in task.train)
    assert kinds == {"pairs": 8192, "general": 8192}
    assert list(task.held_out)[:2] == ["4 numbers", "general"]
    assert set(task.held_out) == {*load_task("pairs").held_out, "general"}
    both = load_task("pairs+countdown").held_out
    assert set(both) >= {"pairs: 4 numbers", "countdown: 4 numbers", "5 numbers"}


def test_the_language_reward_is_added():
    facts = {"accuracy": 1.0, "format": 1.0, "language": 0.75, "length": 5}
    assert train.total_reward(facts, train.Config()) == pytest.approx(1.1)
    with_language = train.Config(language_weight=0.2)
    assert train.total_reward(facts, with_language) == pytest.approx(1.25)


def test_the_language_is_that_of_the_question_by_default_english():
    tokenizer = Tokenizer.load("data/base")
    text = "<think>\n1+2=3 bien\n</think>\n<answer>1+2</answer>"
    ids = tokenizer.encode(text) + [tokenizer.eos_id]
    problem = {"prompt": "User:", "kind": "countdown", "numbers": [1, 2], "target": 3, "pick": 2}
    judge = rewards.Judge(rewards.accuracy, tokenizer)
    assert judge(problem, ids)["language"] == 0
    assert judge(problem | {"language": "en"}, ids)["language"] == 0
    assert judge(problem | {"language": "es"}, ids)["language"] == 1


# --- Rejection sampling -----------------------------------------------------------------------

WORD = {"en": "yes", "es": "bien"}


def expression(problem):
    """A right answer."""
    for text, value in pairs.candidates(problem["numbers"]):
        if value == problem["target"]:
            return text


def traced(word, answer):
    return f"<think>\n1+1=2 {word}\n</think>\n<answer>{answer}</answer>"


def six_responses(problem):
    """The right one twice; then one in the other language, a wrong, a bare and a long one."""
    word = WORD[problem["language"]]
    other = WORD["es" if problem["language"] == "en" else "en"]
    right = traced(word, expression(problem))
    wrong = traced(word, "1+1+1")
    long = traced(word + "\n" * 90, expression(problem))
    return [
        right,
        right,
        traced(other, expression(problem)),
        wrong,
        f"so {expression(problem)}",
        long,
    ]


def scripted(model, tokenizer, judge, problems, k, *settings):
    """In place of evaluate.sample_and_judge."""
    groups = []
    for problem in problems:
        ids = [tokenizer.encode(text) + [tokenizer.eos_id] for text in six_responses(problem)]
        groups.append([judge(problem, response) for response in ids])
    return groups


def test_rejection_sampling_keeps_what_is_right_well_formed_in_one_language_and_short(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "sample_and_judge", scripted)
    out = tmp_path / "kept.jsonl"
    flags = f"--model data/base --problems 5 --k 6 --out {out} --max_length 60"
    rejection.main(flags.split())
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    expected = []
    for problem in load_task("pairs").train[:5]:
        response = traced(WORD[problem["language"]], expression(problem))
        expected.append({"prompt": problem["prompt"], "response": response})
    assert kept == expected
    assert not (tmp_path / "kept.jsonl.tmp").exists()


def test_rejection_sampling_finds_out_at_once_that_it_cannot_write(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "sample_and_judge", None)
    task = tmp_path / "task.jsonl"
    write_rows(task, [{"prompt": f"{i}+1?", "answer": "1"} for i in range(40)])
    before = task.read_bytes()
    os.symlink(task, tmp_path / "link.jsonl")
    base = ["--model", "data/base", "--task", task, "--out"]
    refused(capsys, rejection.main, [*base, tmp_path / "nowhere" / "kept.jsonl"], "nowhere")
    refused(capsys, rejection.main, [*base, tmp_path], tmp_path, "is a folder")
    refused(capsys, rejection.main, [*base, task], task, "is read")
    refused(capsys, rejection.main, [*base, tmp_path / "link.jsonl"], "link.jsonl is read")
    assert task.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link.jsonl", "task.jsonl"]
    with pytest.raises(TypeError):  # sampling has begun
        rejection.main([str(word) for word in (*base, tmp_path / "kept.jsonl")])
    assert sorted(os.listdir(tmp_path)) == ["link.jsonl", "task.jsonl"]


def run_module(*words):
    command = [sys.executable, "-m", *[str(word) for word in words]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_bad_calls_of_what_makes_data(tmp_path):
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    write_rows(tmp_path / "good.jsonl", [{"prompt": "a", "response": "b"}])
    out = tmp_path / "rows"
    calls = {
        ("data.corpus", "corpus", "many", out): "many",
        ("data.corpus", "corpus", -1, out): "-1 rows",
        ("data.corpus", "cold", 10**30, out): "below 1e12",
        ("data.corpus", "cold", 5, tmp_path): "is a folder",
        ("data.corpus", "cold", 5, tmp_path / "bad.jsonl" / "x"): "bad.jsonl/x",
        ("data.general", "pairs", 0, out): "0 rows",
        ("data.general", "stories", 5, out): "stories",
        ("data.general", "pairs", 5, tmp_path / "no" / "rows"): "no/rows",
        ("data.general", "pairs", 5): "file",
        ("bench.learn_tokenizer",): "corpus, folder",
        ("bench.learn_tokenizer", tmp_path / "no.jsonl", out): "no.jsonl",
        ("bench.learn_tokenizer", tmp_path / "bad.jsonl", out): "bad.jsonl:1",
        ("bench.learn_tokenizer", tmp_path, out): str(tmp_path),
        ("bench.learn_tokenizer", tmp_path / "good.jsonl", tmp_path / "bad.jsonl"): "bad.jsonl",
    }
    for words, reason in calls.items():
        run = run_module(*words)
        assert run.returncode == 2 and run.stderr.count("\n") == 1, (words, run.stderr)
        assert reason in run.stderr, (words, run.stderr)
    assert sorted(os.listdir(tmp_path)) == ["bad.jsonl", "good.jsonl"]


# --- SFT --------------------------------------------------------------------------------------


def test_muon_trains_the_matrices_but_embeddings_and_the_head(tiny):
    for model in (tiny(), tiny(tie_embeddings=False, qkv_bias=True, qk_norm=True), Critic(tiny())):
        blocks = model.body.layers if isinstance(model, Critic) else model.layers
        matrices = [p for p in blocks.parameters() if p.dim() == 2]
        muon, adamw = sft.optimizers(model, lr=1e-3, muon_lr=1e-2)
        of_muon = muon.param_groups[0]["params"]
        of_adamw = adamw.param_groups[0]["params"]
        assert [id(p) for p in of_muon] == [id(p) for p in matrices]
        every = [id(p) for p in model.parameters()]
        assert sorted(id(p) for p in of_muon + of_adamw) == sorted(every)


def small_vocabulary(folder):
    """Cuts the vocabulary of a checkpoint folder from 640 tokens to 600."""
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"vocab_size": 640', '"vocab_size": 600'))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = weights[name][:600]
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def test_a_stage_refuses_another_shape_or_tokenizer(tmp_path, capsys):
    data, init, out = tmp_path / "rows.jsonl", tmp_path / "init", tmp_path / "out"
    rows = []
    for request in general.requests()[0][:40]:
        texts = {"response": "x", "better": "red", "worse": "blue"}
        rows.append({"prompt": request["prompt"]} | texts)
    write_rows(data, rows)
    shutil.copytree("data/student", init)
    shutil.copy("data/base/tokenizer.tiktoken", init)
    flags = ["--data", data, "--init", init, "--out", out, "--steps", 1, "--scratch"]
    sft.main([str(word) for word in flags])
    capsys.readouterr()

    config = (init / "config.json").read_text()
    narrow = config.replace('"intermediate_size": 256', '"intermediate_size": 128')
    (init / "config.json").write_text(narrow)
    refused(
        capsys, sft.main, [*flags, "--resume"], "state.pt is of a run with other flags, data or"
    )

    small_vocabulary(out)
    flags = ["--data", data, "--init", out, "--out", tmp_path / "x"]
    words = ("640 tokens", "600")
    refused(capsys, sft.main, flags, *words)
    refused(capsys, reward_model.main, flags, *words)
    refused(capsys, evaluate.main, ["--model", out], *words)
    refused(capsys, rejection.main, ["--model", out, "--out", tmp_path / "y"], *words)
    refused(capsys, train.main, ["--init", out, "--out", tmp_path / "x"], *words)


def test_sft_resumes_to_the_same_weights(tmp_path, capsys):
    data = tmp_path / "cold.jsonl"
    write_rows(data, itertools.islice(corpus.cold_start(random.Random(0)), 6))
    flags = "--init data/base --batch 4 --lr 1e-3 --muon_lr 0.01 --warmup 2 --save_every 2"
    flags = [*flags.split(), "--steps", "5", "--data", data]

    def run(name, *more):
        sft.main([str(word) for word in (*flags, "--out", tmp_path / name, *more)])

    run("whole")
    for number, more in ((2, []), (4, ["--resume"])):
        # the second is before any checkpoint of a step
        with stopped_in_step(number):
            run("parts", *more)

    capsys.readouterr()
    to_parts = [*flags, "--out", tmp_path / "parts"]
    other = "state.pt is of a run with other flags, data or init\n"
    refused(capsys, sft.main, [*to_parts, "--resume", "--seed", 1], other)
    rows = data.read_text()
    data.write_text(rows + rows.splitlines()[0])
    refused(capsys, sft.main, [*to_parts, "--resume"], other)
    data.write_text(rows)
    refused(capsys, sft.main, to_parts, "holds state.pt already: --resume it, or name another")

    run("parts", "--resume")
    whole, parts = GPT.load(tmp_path / "whole"), GPT.load(tmp_path / "parts")
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(p, q)
    logs = [read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    losses = [[row["nll"] for row in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_a_log_goes_on_where_a_checkpoint_was(tmp_path):
    path = str(tmp_path / "log.csv")
    log = Log(path)
    log.write_row({"step": 1, "kl": 0.5})
    text = log.text
    log.write_row({"step": 2, "kl": 0.25})
    log = Log(path, text)
    log.write_row({"kl": float("nan"), "step": 2})
    log.write_row({"step": 3})
    assert (tmp_path / "log.csv").read_text().split() == ["step,kl", "1,0.5", "2,nan", "3,"]


def test_sft_leaves_out_the_think_tag_that_a_prompt_opens(tmp_path):
    row = {"prompt": "User: hello\nAssistant:", "response": "<think>\nx\n</think>\n"}
    data = write_rows(tmp_path / "rows.jsonl", [row])
    for think in (False, True):
        config = sft.Config(data=str(data), init="", out="", think=think)
        tokenizer = Tokenizer.load("data/base", think=think)
        [(prompt, response)] = sft.read_pairs(config, tokenizer)
        text = tokenizer.decode(prompt + response)
        assert text == "User: hello\nAssistant:<think>\nx\n</think>\n<|end|>"
        assert tokenizer.decode(prompt).endswith("<think>\n") == think


# --- The reward model -------------------------------------------------------------------------


def critic_with_opinions():
    torch.manual_seed(0)
    critic = Critic(GPT.load("data/base"))
    torch.nn.init.normal_(critic.value_head.weight)
    critic.value_head.bias.data.fill_(2.0)
    return critic


def test_a_score_is_the_sum_of_the_values_after_each_token_whatever_else_is_in_the_batch():
    critic = critic_with_opinions()
    tokenizer = Tokenizer.load("data/base")
    problems = [REQUEST, {"prompt": "User: hello\nAssistant:"}, REQUEST]
    answers = [["cat dog red blue green", "cat"], ["cat", "dog cat"], ["", "red"]]
    together = reward_model.scores(critic, tokenizer, problems, answers)
    assert together.shape == (3, 2)
    for i, problem in enumerate(problems):
        for j, answer in enumerate(answers[i]):
            prompt = tokenizer.prompt(problem)
            ids = prompt + tokenizer.encode(answer) + [tokenizer.eos_id]
            states = critic(torch.tensor([ids]))[0, len(prompt) - 1 :]
            alone = (states @ critic.value_head.weight[0]).sum() + critic.value_head.bias
            assert torch.allclose(alone, together[i, j], atol=1e-3)
    pairs_of_answers = []
    for problem, (better, worse) in zip(problems, answers, strict=True):
        pairs_of_answers.append(problem | {"better": better, "worse": worse})
    margins = reward_model.margins(critic, tokenizer, pairs_of_answers)
    assert torch.allclose(margins, together[:, 0] - together[:, 1], atol=1e-5)


def is_test_prompt(prompt):
    return zlib.crc32(" ".join(sorted(prompt.split())).encode()) % 8 == 1


@pytest.fixture
def trained(tmp_path, capsys):
    """A reward model of 40 requests. It is to prefer "red blue" to "stop", told apart at a glance.

    Requests that are held out, and those for the same words in the other order, are labelled the
    wrong way round: they are not to be learned from. -> its folder, its data, what it printed"""
    data = tmp_path / "pairs.jsonl"
    rows = []
    for request in general.requests()[0][:40]:
        better, worse = "red blue", "stop"
        if is_test_prompt(request["prompt"]):
            better, worse = worse, better
        rows.append({"prompt": request["prompt"], "better": better, "worse": worse})
    write_rows(data, rows)
    folder = tmp_path / "rm"
    flags = f"--data {data} --init data/base --out {folder} --epochs 6 --batch 8"
    reward_model.main(flags.split())
    return folder, rows, capsys.readouterr().out


def test_the_reward_model_learns_the_preference_and_is_a_reward(trained):
    folder, rows, printed = trained
    held_out = sum(is_test_prompt(row["prompt"]) for row in rows)
    assert held_out == 2 and f"{held_out} pairs are held out" in printed
    assert f"\n{40 - held_out} pairs," in printed and "pairs: 0.000 right" in printed
    log = read_csv(folder / "metrics.csv")
    assert abs(float(log[0]["nll"]) - math.log(2)) < 1e-5  # (2) with equal scores

    judge = reward_model.as_reward(folder, train.Config())
    problem = {"prompt": rows[0]["prompt"]}
    thought = "<think>\nstop\n</think>\n<answer>{}</answer><|end|>"
    better = judge(problem, thought.format("red blue"))
    worse = judge(problem, thought.format("stop"))
    assert 0 < worse < 0.5 < better < 1
    assert judge(problem, "red blue<|end|>") == better  # it reads the answer, not the thinking

    critic = Critic(GPT.load(folder, weights=False))
    checkpoint.load_weights(critic, folder)
    seen = [row for row in rows if not is_test_prompt(row["prompt"])]
    scores = reward_model.pair_scores(critic, Tokenizer.load("data/base"), seen)
    assert abs(scores.mean()) < 1e-3


def test_the_reward_model_judges_training_and_a_second_held_out_set(trained):
    folder, _, _ = trained
    task = build_task(train.Config(task="pairs+general", reward_model=str(folder)), 0)
    assert Counter(p["kind"] for p in task.train) == {"pairs": 8192, "preferred": 8192}
    by_rule = task.held_out["general"][0]
    preferred = task.held_out["general by reward model"][0]
    assert by_rule["kind"] == "general" and preferred == by_rule | {"kind": "preferred"}
    assert len(task.held_out["general"]) == len(task.held_out["general by reward model"])
    judge = reward_model.as_reward(str(folder), train.Config())
    assert task.accuracy(preferred, "red blue") == judge(preferred, "red blue")
    assert task.accuracy(by_rule, "red blue") == rewards.accuracy(by_rule, "red blue")


def test_what_does_not_fit_a_reward_model_is_refused(trained, tmp_path, capsys):
    folder, rows, _ = trained
    to_x = ["--out", tmp_path / "x"]
    flags = ["--task", "general", "--reward_model", "data/base", *to_x]
    refused(capsys, train.main, flags, "value_head", "missing")
    flags = ["--task", "pairs", "--reward_model", folder, *to_x]
    refused(capsys, train.main, flags, "--reward_model")
    refused(capsys, train.main, ["--init", folder, *to_x], "value_head")
    write_rows(tmp_path / "long.jsonl", [row | {"better": "red " * 600} for row in rows])
    flags = ["--data", tmp_path / "long.jsonl", "--init", "data/base", *to_x]
    refused(capsys, reward_model.main, flags, "do not fit")


# --- The whole story --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """scripts(SCRIPT, ...) runs a script in small; its programs are forks of one that is warm."""
    folder = tmp_path_factory.mktemp("python")
    command = [sys.executable, "tests/warm_python.py", str(folder)]
    environment = dict(os.environ, SMALL="1", PATH=f"{folder}:{os.environ['PATH']}")

    def run(*words):
        words = [str(word) for word in words]
        settings = {"env": environment, "capture_output": True, "text": True}
        script = subprocess.run(["bash", *words], cwd=ROOT, **settings)
        assert script.returncode == 0, script.stdout + script.stderr
        return script.stdout

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        yield run
        server.kill()


def measured_stages(folder):
    paths = glob.glob(f"{folder}/*/held_out.csv")
    return sorted(os.path.basename(os.path.dirname(path)) for path in paths)


def test_the_scripts_run_through_in_small(scripts, tmp_path):
    r1, distill, opd = tmp_path / "r1", tmp_path / "distill", tmp_path / "opd"
    scripts("runs/r1.sh", r1)
    stages = "0-zero 1-cold-start 2-reasoning 3-sft 4a-rules 4b-all 4b-first base"
    assert measured_stages(r1) == stages.split() and (r1 / "journey.png").stat().st_size
    scripts("runs/distill.sh", distill, "0", r1)
    stages = "student-base student-distilled student-distilled-rl student-rl"
    assert measured_stages(distill) == stages.split()
    scripts("runs/opd.sh", opd, "0", r1, distill)
    stages = "merged-full merged-token student-full student-token teacher-2-reasoning"
    assert measured_stages(opd) == [*stages.split(), "teacher-4b-all"]

    # to run a stage anew: delete its folder
    shutil.rmtree(r1 / "4b-all")
    times = {}
    for name in ("state.pt", "held_out.csv"):
        for path in glob.glob(f"{tmp_path}/*/*/{name}"):
            times[path] = os.path.getmtime(path)
    assert "| 4b-all | 0." in scripts("runs/r1.sh", r1)
    assert times == {path: os.path.getmtime(path) for path in times}


def write_stage(folder, held_out, metrics, evaluations=""):
    folder.mkdir(parents=True)
    (folder / "held_out.csv").write_text(held_out)
    (folder / "metrics.csv").write_text(metrics)
    if evaluations:
        (folder / "eval.csv").write_text(evaluations)


HELD_OUT = """\
set,accuracy,pass@1,pass@1_ci,cons@16,cons@16_ci,greedy,greedy_ci,length,format,language,reflection
4 numbers,{0},{0},9,1.0,9,0.3,9,20.5,1,1,0
6 numbers,0.5,0.5,9,1.0,9,0.3,9,20.5,1,1,0
general,0.25,nan,9,nan,9,0.125,9,5,1,1,0
"""


def print_table(*words):
    command = [sys.executable, "bench/table.py", *[str(word) for word in words]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_table_of_stages_by_hand(tmp_path):
    """Means and ranges over the seeds, steps and minutes; each stage once."""
    folders = []
    for seed, right, seconds in ((0, 0.5, 60), (1, 0.75, 120)):
        folders.append(tmp_path / f"r1-{seed}" / "1-cold-start")
        metrics = f"step,nll,seconds\n1,0.5,{seconds}\n2,0.5,{seconds}\n"
        write_stage(folders[-1], HELD_OUT.format(right), metrics)
    row = "| 1-cold-start | 0.625 (0.500-0.750) | 0.500 | 1.000 | 20.5 | 1.000 | 1.000 | 0.000 "
    row += "| 0.250 | 0.125 | 2 | 3.0 |"
    assert print_table("stages", *folders).stdout.split("\n").count(row) == 1

    pairs_of_runs = (
        ("4c-first-model-only", (0.1, 0.3, 0.5), 0.25),
        ("4c-second-model-only", (0.5, 0.5, 0.5), 0.5),
        ("4d-rule-only", (0.9, 0.9, 0.9), 0.75),
    )
    folders = []
    for name, paid, judged in pairs_of_runs:
        metrics = "step,accuracy,seconds\n"
        metrics += "".join(f"{i},{accuracy},1\n" for i, accuracy in enumerate(paid, 1))
        evaluations = "step,set,accuracy\n0,general,0.5\n"
        evaluations += f"2,general,{judged}\n2,general by reward model,1\n"
        folders.append(tmp_path / "r1-0" / name)
        write_stage(folders[-1], HELD_OUT.format(0.5), metrics, evaluations)
    out = print_table("reward_hacking", *folders).stdout
    assert "| 0 | 0.100 | 0.500 | 0.500 | 0.500 | 0.500 |\n" in out
    assert "| 2 | 0.200 | 0.250 | 0.500 | 0.500 | 0.750 |\n" in out

    run = print_table("stages", tmp_path / "nothing")
    assert run.returncode != 0 and run.stderr.count("\n") == 1 and "nothing" in run.stderr


FAKE_TRAINING = """\
import os, sys
out = sys.argv[2]
os.makedirs(out, exist_ok=True)
print(*sys.argv[3:])
open(out + '/state.pt', 'w').close()
sys.exit('--resume' not in sys.argv)
"""

SCRIPT = f"""\
set -euo pipefail
out=o
seed=0
. {ROOT}/runs/stages.sh
make a/data touch
make a/data false
train a --steps 3 || echo stopped
train a --steps 3
train a --steps 3
make b/data false
"""


def test_a_stage_goes_on_where_it_was_stopped(tmp_path):
    """A program that was stopped is resumed, one that is done is not run again; a file is made
    once."""
    (tmp_path / "train.py").write_text(FAKE_TRAINING)
    environment = dict(os.environ, PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    settings = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    run = subprocess.run(["bash", "-c", SCRIPT], **settings)
    assert run.stdout == "--steps 3\nstopped\n--steps 3 --resume\n"
    assert run.returncode == 1, run.stderr
