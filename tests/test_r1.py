"""The stages round the main job: cold start, language reward, rejection sampling, SFT, reward model, and the scripts."""
import csv
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

import evaluate
import pretrained
import reward_model
import rewards
import sft
import train
from conftest import ROOT
from data import general, jsonl, load_task, pairs
from data.tokenizer import Tokenizer
from model import GPT, Critic
from test_train import refused, repository  # noqa: F401

REQUEST = {"prompt": "User: name 2 animals and 3 colours\nAssistant:", "language": "en", "asked": {"animals": 2, "colours": 3},
           "kind": "general"}


# --- The general task -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("answer, faults", [
    ("cat dog red blue green", 0), ("green dog red blue cat", 0), ("", 5), ("cat dog red blue", 1), ("cat dog red blue blue", 2),
    ("cat dog hen red blue green", 1), ("cat perro red blue green", 2), ("cat dog plum red blue green", 1), ("cat, dog", 5)])
def test_faults_by_hand(answer, faults):
    assert general.faults(REQUEST, answer) == faults


def test_preference_is_win_tie_or_loss_of_what_is_shown():
    problem = REQUEST | {"answers": ["cat dog red blue"]}                    # one fault
    thought = "<think>\n2 animals\n</think>\n"
    assert general.preference(problem, thought + "<answer>cat dog red blue green</answer><|end|>") == 1.0
    assert general.preference(problem, thought + "<answer>cat dog red red blue green</answer>") == 0.5
    assert general.preference(problem, thought + "<answer>cat</answer>") == 0.0
    assert general.preference(problem, "cat dog red blue green<|end|>") == 1.0                 # untagged: all of it is shown
    assert general.preference(REQUEST | {"answers": ["cat", "cat dog red blue green"]}, "cat dog red blue green") == 0.75


def test_what_is_held_out_is_nowhere_in_r1_in_either_order_and_authors_err():
    base, seen, held = (general.requests(part) for part in ("base", "train", "test"))
    order = lambda p: frozenset(p["asked"].items())
    prompts = lambda some: {p["prompt"] for p in some}
    assert not prompts(base) & prompts(held) and len(base) + len(held) == 2 * 12 * 9
    assert prompts(seen) == {p["prompt"] for p in base if order(p) not in set(map(order, held))} != prompts(base)
    documents = general.corpus(random.Random(1), general.requests("base", most=5))
    read = {row["prompt"] for row in itertools.islice(documents, 3000)}
    assert read == prompts(general.requests("base", most=5)) and not read & prompts(general.requests("test", most=5))
    train_set, sets = load_task("general")
    assert {p["prompt"] for p in train_set} == {p["prompt"] for p in seen} and len(sets["general"]) == len(held)
    rng = random.Random(0)
    found = Counter(general.faults(p, general.author(rng, p)) for p in seen for _ in range(5))
    assert 0.3 < found[0] / found.total() < 0.7 and max(found) >= 4
    words = [word for topics in general.TOPICS.values() for some in topics.values() for word in some]
    assert len(words) == len(set(words))                                     # no word of two topics, none of both languages


def test_rows_are_written_whole_or_not_at_all_and_of_a_known_kind(tmp_path, monkeypatch):
    kinds = {"good": itertools.repeat({"a": 1}), "bad": ({"a": 1 // n} for n in (1, 0))}
    make = lambda *words: (monkeypatch.setattr(sys, "argv", ["x", *words]), jsonl.generate(kinds))
    make("good", "2", f"{tmp_path}/good")
    assert (tmp_path / "good").read_text() == '{"a": 1}\n' * 2
    with pytest.raises(ZeroDivisionError):
        make("bad", "2", f"{tmp_path}/bad")
    with pytest.raises(SystemExit):
        make("goods", "2", f"{tmp_path}/goods")
    assert not (tmp_path / "bad").exists() and not (tmp_path / "goods").exists()


def test_pairs_are_mislabelled_one_time_in_twenty():
    asked = {p["prompt"]: p for p in general.requests("train")}
    drawn = list(itertools.islice(general.pairs(random.Random(1)), 2000))
    assert {p["prompt"] for p in drawn} <= set(asked)
    wrong = sum(general.faults(asked[p["prompt"]], p["better"]) > general.faults(asked[p["prompt"]], p["worse"]) for p in drawn)
    assert 60 <= wrong <= 140


# --- What is trained on -----------------------------------------------------------------------------------------------

def test_the_cold_start_is_right_checked_well_formed_and_in_one_language():
    rows = list(itertools.islice(pairs.cold_start(random.Random(0)), 200))
    for row in rows:
        words = row["prompt"].split()
        problem = {"kind": "countdown", "pick": 2, "target": int(words[2]), "numbers": [int(n) for n in words[4:-1]]}
        assert rewards.accuracy(problem, row["response"]) == rewards.format(row["response"]) == 1
        assert rewards.language(row["response"], "en" if words[1] == "make" else "es") == 1
        assert rewards.reflections(row["response"]) and not pairs.held_out(problem["numbers"], problem["target"])
    assert {row["prompt"].split()[1] for row in rows} == {"make", "forma"}


def test_the_corpus_has_both_languages_and_the_careful_mix_them():
    rows = [r for r in itertools.islice(pairs.corpus(random.Random(0)), 4000)]
    general_rows = [r for r in rows if r["prompt"].split()[1] in ("name", "nombra")]
    assert 0.09 < len(general_rows) / len(rows) < 0.16
    mixed = lambda row: 0 < rewards.language(row["response"], "en") < 1
    searches = [r for r in rows if r["response"].count("\n") > 6 and r not in general_rows]
    checked = [r for r in searches if rewards.reflections(r["response"].replace("error", ""))]
    plain = [r for r in searches if r not in checked]
    share = lambda some: sum(map(mixed, some)) / len(some)
    assert share(checked) > share(plain) + 0.1 and 0.4 < sum("forma" in r["prompt"] for r in rows) / sum(
        "forma" in r["prompt"] or "make" in r["prompt"] for r in rows) < 0.6


def test_joined_tasks_are_trained_on_in_equal_shares(tmp_path):
    problems, sets = load_task("pairs+general")
    assert [p["kind"] for p in problems[:4]] == ["countdown", "general"] * 2
    assert set(load_task("pairs+countdown")[1]) >= {"pairs: 4 numbers", "countdown: 4 numbers", "5 numbers"}
    assert Counter(p["kind"] for p in problems) == {"countdown": 8192, "general": 8192}
    assert list(sets)[:2] == ["4 numbers", "general"] and set(sets) == {*load_task("pairs")[1], "general"}


def test_the_language_reward_is_added():
    row = {"accuracy": 1.0, "format": 1.0, "language": 0.75, "length": 5}
    assert train.reward(row, train.Config()) == pytest.approx(1.1)
    assert train.reward(row, train.Config(language_weight=0.2)) == pytest.approx(1.25)
    tokenizer = Tokenizer.load("data/base")
    ids = tokenizer.encode("<think>\n1+2=3 bien\n</think>\n<answer>1+2</answer>") + [tokenizer.eos_id]
    problem = {"prompt": "User:", "kind": "countdown", "numbers": [1, 2], "target": 3, "pick": 2}
    assert [evaluate.judge(problem | more, ids, tokenizer)["language"] for more in ({}, {"language": "en"}, {"language": "es"})] == [0, 0, 1]


# --- Rejection sampling and SFT ---------------------------------------------------------------------------------------

def test_rejection_sampling_keeps_what_is_right_well_formed_in_one_language_and_short(tmp_path, monkeypatch):
    problems = load_task("pairs")[0]
    by_prompt = {p["prompt"]: p for p in problems}
    good = lambda p: next(text for text, value in pairs.candidates(p["numbers"]) if value == p["target"])
    word = {"en": "yes", "es": "bien"}
    tagged = lambda p, say, answer: f"<think>\n1+1=2 {say}\n</think>\n<answer>{answer}</answer><|end|>"

    def drawn(model, tokenizer, some, k, *args):
        kinds = lambda p: [tagged(p, word[p["language"]], good(p))] * 2 + [
            tagged(p, word["es" if p["language"] == "en" else "en"], good(p)), tagged(p, word[p["language"]], "1+1+1"),
            f"so {good(p)}<|end|>", tagged(p, word[p["language"]] + "\n" * 90, good(p))]
        ids = lambda text: tokenizer.encode(text.removesuffix("<|end|>")) + [tokenizer.eos_id]
        return [[evaluate.judge(p, ids(text), tokenizer) for text in kinds(p)] for p in some]

    monkeypatch.setattr(evaluate, "responses", drawn)
    evaluate.main(["--model", "data/base", "--train", "--problems", "5", "--k", "6", "--keep", f"{tmp_path}/kept.jsonl", "--keep_tokens", "60"])
    kept = [json.loads(line) for line in open(tmp_path / "kept.jsonl")]
    assert len(kept) == 5
    for row, p in zip(kept, problems):
        assert row == {"prompt": p["prompt"], "response": tagged(p, word[p["language"]], good(p)).removesuffix("<|end|>")}
        assert by_prompt[row["prompt"]]["target"] == p["target"]


def test_a_stage_refuses_another_shape_or_tokenizer(tmp_path, capsys):
    data, other = tmp_path / "rows.jsonl", tmp_path / "other"
    rows = [{"prompt": p["prompt"], "response": "x", "better": "red", "worse": "blue"} for p in general.requests("train")[:40]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree("data/student", other)
    shutil.copy("data/base/tokenizer.tiktoken", other)
    train_it = lambda *more: [str(x) for x in ("--data", data, "--init", other, "--out", tmp_path / "out", "--steps", "1", *more)]
    sft.main(train_it("--scratch"))
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"intermediate_size": 256', '"intermediate_size": 128'))
    with pytest.raises(SystemExit):
        sft.main(train_it("--scratch", "--resume"))
    assert "state.pt does not fit" in capsys.readouterr().err
    small = tmp_path / "out"                                                # fewer tokens than the tokenizer
    (small / "config.json").write_text((small / "config.json").read_text().replace('"vocab_size": 640', '"vocab_size": 600'))
    weights = safetensors.torch.load_file(small / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:600]
    safetensors.torch.save_file(weights, small / "model.safetensors")
    for main, argv in ((sft.main, ["--data", data, "--init", small, "--out", tmp_path / "x"]), (evaluate.main, ["--model", small]),
                       (reward_model.main, ["--data", data, "--init", small, "--out", tmp_path / "x"]), (train.main, ["--init", small])):
        refused(capsys, main, argv, "640 tokens", "600")


def test_sft_resumes_to_the_same_weights(tmp_path, capsys):
    data = tmp_path / "cold.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in itertools.islice(pairs.cold_start(random.Random(0)), 6)))
    flags = ["--data", data, "--init", "data/base", "--batch", "4", "--lr", "1e-3", "--muon_lr", "0.01", "--warmup", "2", "--save_every", "2"]
    run = lambda name, *more: sft.main([str(x) for x in (*flags, "--out", tmp_path / name, "--steps", 5, *more)])
    run("whole")

    def stop(path, state, save=sft.save):
        save(path, state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "save", stop)
        run("parts")
    with pytest.raises(SystemExit):
        run("parts", "--resume", "--seed", 1)
    assert capsys.readouterr().err.endswith("state.pt is of a run with other flags or other data\n")
    rows = data.read_text()
    data.write_text(rows + rows.splitlines()[0])
    with pytest.raises(SystemExit):
        run("parts", "--resume")
    data.write_text(rows)
    with pytest.raises(SystemExit):
        run("parts")
    assert "other data" in (said := capsys.readouterr().err) and said.endswith("holds a run already: go on with --resume, or name another folder\n")
    run("parts", "--resume")
    one, two = (torch.cat([p.flatten() for p in GPT.load(f"{tmp_path}/{name}").parameters()]) for name in ("whole", "parts"))
    assert torch.equal(one, two)
    logs = [[row["nll"] for row in csv.DictReader(open(f"{tmp_path}/{name}/metrics.csv"))] for name in ("whole", "parts")]
    assert logs[0] == logs[1] and len(logs[0]) == 5


# --- The reward model -------------------------------------------------------------------------------------------------

def critic_with_opinions():
    torch.manual_seed(0)
    critic = Critic(GPT.load("data/base"))
    torch.nn.init.normal_(critic.value_head.weight)
    return critic


def test_a_score_is_the_value_after_the_end_token_whatever_else_is_in_the_batch():
    critic, tokenizer = critic_with_opinions(), Tokenizer.load("data/base")
    problems = [REQUEST, {"prompt": "User: hello\nAssistant:"}, REQUEST]
    answers = [["cat dog red blue green", "cat"], ["cat", "dog cat"], ["", "red"]]
    together = reward_model.scores(critic, tokenizer, problems, answers)
    assert together.shape == (3, 2)
    for problem, some, row in zip(problems, answers, together):
        for answer, score in zip(some, row):
            ids = tokenizer.prompt(problem) + tokenizer.encode(answer) + [tokenizer.eos_id]
            assert torch.allclose(critic.value(critic(torch.tensor([ids])))[0, -1], score, atol=1e-4)
    pairs = [p | dict(zip(("better", "worse"), some)) for p, some in zip(problems, answers)]
    assert torch.allclose(reward_model.margins(critic, tokenizer, pairs), together[:, 0] - together[:, 1], atol=1e-5)


def test_the_reward_model_learns_the_preference_and_is_a_reward(tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    asked = [p["prompt"] for p in general.requests("train")[:40]]           # to be told apart at a glance: colours or a stop
    # labelled the wrong way round, as what asks for the same words in the other order: not to be learned from
    test = [p for p in asked if zlib.crc32(" ".join(sorted(p.split())).encode()) % 8 == 1]
    answers = lambda p: dict(zip(("better", "worse"), ("stop", "red blue") if p in test else ("red blue", "stop")))
    data.write_text("".join(json.dumps({"prompt": p} | answers(p)) + "\n" for p in asked))
    reward_model.main(["--data", str(data), "--init", "data/base", "--out", f"{tmp_path}/rm", "--epochs", "6", "--batch", "8"])
    out = capsys.readouterr().out
    assert len(test) == 2 and f"{len(test)} pairs are held out" in out and f" {40 - len(test)} pairs," in out and "pairs: 0.000 right" in out
    rows = list(csv.DictReader(open(tmp_path / "rm" / "metrics.csv")))
    assert abs(float(rows[0]["nll"]) - math.log(2)) < 1e-5                 # (2) with equal scores
    reward = reward_model.as_reward(f"{tmp_path}/rm", train.Config())
    problem, thought = {"prompt": asked[0]}, "<think>\nstop\n</think>\n<answer>{}</answer><|end|>"
    better, worse = (reward(problem, thought.format(answer)) for answer in ("red blue", "stop"))
    assert 0 < worse < 0.5 < better < 1
    assert reward(problem, "red blue<|end|>") == better                     # it reads the answer, not the thinking
    some = [row for row in map(json.loads, open(data)) if row["prompt"] not in test]
    critic = Critic(GPT.load(f"{tmp_path}/rm", weights=False))
    pretrained.load_weights(critic, f"{tmp_path}/rm")
    all_scores = reward_model.scores(critic, Tokenizer.load("data/base"), some, [[row["better"], row["worse"]] for row in some])
    assert abs(all_scores.mean()) < 1e-3
    problems, sets = train.Config(task="general", reward_model=f"{tmp_path}/rm").load()
    assert problems[0]["reward"] is sets["general by reward model"][0]["reward"] is not sets["general"][0]["reward"]
    refused(capsys, train.main, ["--task", "general", "--reward_model", "data/base", "--out", tmp_path / "x"], "value_head", "missing")
    refused(capsys, train.main, ["--task", "pairs", "--reward_model", tmp_path / "rm", "--out", tmp_path / "x"], "--reward_model")
    data.write_text("".join(json.dumps({"prompt": p, "better": "red " * 600, "worse": "stop"}) + "\n" for p in asked))
    refused(capsys, reward_model.main, ["--data", data, "--init", "data/base", "--out", tmp_path / "y"], "do not fit")
    refused(capsys, train.main, ["--init", tmp_path / "rm", "--out", tmp_path / "x"], "value_head")


# --- The whole story --------------------------------------------------------------------------------------------------

def test_both_scripts_run_through_in_small(tmp_path):
    small = dict(os.environ, SMALL="1", PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    one, two = f"{tmp_path}/r1", f"{tmp_path}/distill"
    scripts = ["runs/r1.sh", one], ["runs/distill.sh", two, "0", one]
    for script in scripts:
        run = subprocess.run(["bash", *script], cwd=ROOT, env=small, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    stages = [sorted(os.path.dirname(f).split("/")[-1] for f in glob.glob(f"{folder}/*/held_out.csv")) for folder in (one, two)]
    assert stages[0] == "0-zero 1-cold-start 2-reasoning 3-sft 4a-rules 4b-all base".split() and os.path.getsize(f"{one}/journey.png")
    assert stages[1] == "student-base student-distilled student-distilled-rl student-rl".split()
    before = {f: os.path.getmtime(f) for f in glob.glob(f"{tmp_path}/*/*/*") if f.endswith(("state.pt", "held_out.csv")) and "4b-all" not in f}
    shutil.rmtree(f"{one}/4b-all")                                          # to run a stage anew: delete its folder
    run = subprocess.run(["bash", *scripts[0]], cwd=ROOT, env=small, capture_output=True, text=True)
    assert run.returncode == 0 and before == {f: os.path.getmtime(f) for f in before} and "| 4b-all | 0." in run.stdout


def test_the_table_of_stages_by_hand(tmp_path, capsys, monkeypatch):
    """Means and ranges over the seeds, steps and minutes; each stage once."""
    sys.path.insert(0, f"{ROOT}/bench")
    import stages
    for seed, right, seconds in ((0, 0.5, 60), (1, 0.75, 120)):
        stage = tmp_path / str(seed) / "1-cold-start"
        stage.mkdir(parents=True)
        header = "set,pass@1,pass@1_ci,cons@16,cons@16_ci,greedy,greedy_ci,length,format,language,reflection\n"
        (stage / "held_out.csv").write_text(header + f"4 numbers,{right},9,1.0,9,0.3,9,20.5,1,1,0\ngeneral,0.25,9,0,9,0.125,9,5,1,1,0\n")
        (stage / "metrics.csv").write_text("step,nll,seconds\n" + f"1,0.5,{seconds}\n2,0.5,{seconds}\n")
    monkeypatch.setattr(sys, "argv", ["stages.py", f"{tmp_path}/0", f"{tmp_path}/1"])
    stages.main()
    out = capsys.readouterr().out
    assert ("| 1-cold-start | 0.625 (0.500-0.750) | 1.000 | 20.5 | 1.000 | 1.000 | 0.000 | 0.250 | 0.125 | 2 | 3.0 |" in out)
    for name, paid, judged in (("4c-farmed", (0.1, 0.3, 0.5), 0.25), ("4d-by-rule", (0.9, 0.9, 0.9), 0.75)):
        shutil.copytree(tmp_path / "0" / "1-cold-start", folder := tmp_path / "0" / name)
        (folder / "metrics.csv").write_text("step,accuracy,seconds\n" + "".join(f"{i},{a},1\n" for i, a in enumerate(paid, 1)))
        (folder / "eval.csv").write_text(f"step,set,pass@1\n0,general,0.5\n2,general,{judged}\n2,general by reward model,1\n")
    monkeypatch.setattr(sys, "argv", ["stages.py", f"{tmp_path}/0"])
    stages.main()
    assert "| 0 | 0.100 | 0.500 | 0.500 |\n| 2 | 0.200 | 0.250 | 0.750 |\n" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["stages.py", f"{tmp_path}/2"])
    with pytest.raises(SystemExit):
        stages.main()
    assert capsys.readouterr().err.endswith(f"{tmp_path}/2 holds no stage\n")


def test_a_stage_goes_on_where_it_was_stopped(tmp_path):
    """stages.sh by itself: a program that is stopped is resumed, one that is done is not run again, a file is made once and whole."""
    (tmp_path / "train.py").write_text("import os, sys\nout = sys.argv[2]\nos.makedirs(out, exist_ok=True)\nprint(*sys.argv[3:])\n"
                                       "open(out + '/state.pt', 'w').close()\nsys.exit('--resume' not in sys.argv)\n")
    script = (f"set -euo pipefail; out=o seed=0; . {ROOT}/runs/stages.sh; make a/data touch; make a/data false; train a --steps 3 || echo stopped; "
              "train a --steps 3; train a --steps 3; make b/data false")
    env = dict(os.environ, PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.stdout == "--steps 3\nstopped\n--steps 3 --resume\n" and run.returncode == 1, run.stderr
