"""Any generator of reasoning-gym (optional) as a task, with its own scorer.

    --task gym:chain_sum                              with the generator's own parameters
    --task gym:chain_sum,min_terms=3,max_digits=2     with others: names and values in JSON

Generator and scorer run in the process of verifiers/external.py, which makes an item from its
numbers; a problem holds these.
"""

from tqdm import tqdm

from data.prompt import ask
from verifiers import external


def verify(problem, answer):
    """The generator's own score, 0 to 1; 0 if it takes too long."""
    return external.REASONING_GYM.ask(*problem["item"], answer) or 0.0


def make_problems(generator, seed, count):
    problems = []
    try:
        for index in tqdm(range(count), desc=generator, leave=False, disable=None):
            item = (generator, seed, index)
            question = external.REASONING_GYM.ask(*item)
            if question:  # None: it took too long
                problems.append({"kind": "gym", "item": item, **ask(question)})
            elif not problems:
                raise RuntimeError("the package does not start, or the first item takes too long")
    except RuntimeError as error:
        raise ValueError(f"--task gym:{generator}: {str(error).splitlines()[-1]}") from None
    return problems


def load_generator(generator, seed):
    """-> training problems, {name: held-out problems}; no held-out question is trained on.

    ValueError names the generator, or the package, that there is not."""
    test = {problem["prompt"]: problem for problem in make_problems(generator, 0, 128)}
    train = make_problems(generator, 10_000 * (seed + 1), 1024)
    train = [problem for problem in train if problem["prompt"] not in test]
    return train, {"held out": list(test.values())}
