"""The maintainer's checks. A fork does not need them.

    python .ci/check.py                     all of them
    python .ci/check.py budgets             some: style budgets readme tables blocks mutants

style     ruff format --check, ruff check
budgets   code lines and code tokens (no blanks, comments, docstrings) of formatted files
readme    its size, and the line counts that it quotes, as in "grpo.py ~70" or "| `grpo.py` | ~70 |"
tables    <!-- prints: COMMAND --> before a Markdown table: the command prints exactly that table
blocks    <!-- run: COMMAND --> before fenced blocks: COMMAND succeeds in a copy of the repository
          to which the blocks have been applied, up to the next such comment or heading. A python
          block whose first line is "# FILE.py" becomes that file; a diff block whose first line
          is "# FILE.py" changes it; bash blocks are for people.
mutants   .ci/mutants.py: breaks one line at a time in a copy, and a test must fail
"""

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THING = ["train.py", "grpo.py", "ppo.py", "rewards.py", "sampler.py", "logprobs.py", "model.py"]

# Code lines; tokens where it says so.
LINES_OF_THING = 1_100
TOKENS_OF_THING = 11_000
LINES_OF_PRODUCT = 3_800
LINES_OF_FILE = {"grpo.py": 80, "ppo.py": 100}
LINES_OF_FUNCTION = 45
LINES_OF_DEFAULT_RUN = 1_900  # of the modules that `python train.py --algo grpo` imports
TOP_LEVEL_FILES = 12
README_LINES, README_COLUMNS, README_WORDS = 160, 100, 1_600
RESULT_FILES = 60
NOT_PRODUCT = ("tests", "bench", "results", "out", ".ci", ".venv", ".git")
NOT_COPIED = (".git", ".venv", "out", "__pycache__", ".pytest_cache", ".ruff_cache")
DEFAULT_RUN = """
import sys, tempfile, train
train.main(["--algo", "grpo", "--steps", "1", "--eval_problems", "2", "--eval_k", "2",
            "--eval_sets", "1", "--max_new_tokens", "8", "--eval_max_new_tokens", "8",
            "--out", tempfile.mkdtemp() + "/run"])
for module in list(sys.modules.values()):
    print("module", getattr(module, "__file__", None))
"""


# --- Counting ---------------------------------------------------------------------------------


def product_files():
    """Relative paths of the Python files that are not tests, timings or results."""
    files = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] not in NOT_PRODUCT:
            files.append(str(relative))
    return files


def docstring_lines(source):
    lines = set()
    for node in ast.walk(ast.parse(source)):
        can_have_one = isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        if can_have_one and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines |= set(range(first.lineno, first.end_lineno + 1))
    return lines


def count(path):
    """-> (code lines, code tokens) of a file"""
    source = (ROOT / path).read_text(encoding="utf-8")
    docstrings = docstring_lines(source)
    no_code = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    no_code += (tokenize.INDENT, tokenize.DEDENT)
    lines = set()
    tokens = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        of_token = set(range(token.start[0], token.end[0] + 1))
        if token.type not in no_code and not of_token <= docstrings:
            lines |= of_token
            tokens += 1
    return len(lines), tokens


def long_functions(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > LINES_OF_FUNCTION:
                names.append(f"{path} {node.name}: {length} lines, {LINES_OF_FUNCTION} at most")
    return names


def imported_by_default_run():
    """The repository's modules that the main job imports."""
    run = python("-c", DEFAULT_RUN, cwd=ROOT)
    if run.returncode != 0:
        raise SystemExit(run.stdout + run.stderr)
    imported = set()
    for line in run.stdout.splitlines():
        if line.startswith("module "):
            imported.add(os.path.relpath(line.removeprefix("module "), ROOT))
    return [path for path in product_files() if path in imported]


# --- Checks: each returns a list of what is wrong ---------------------------------------------


def check_style():
    problems = []
    only_python = ["--config", 'extend-exclude = ["results", "*.md"]']
    commands = (["format", "--check"], ["check", "--output-format", "concise"])
    for command in commands:
        run = python("-m", "ruff", *command, *only_python, ".", cwd=ROOT)
        if run.returncode != 0:
            problems.append(run.stdout + run.stderr)
    return problems


def check_budgets():
    counts = {path: count(path) for path in product_files()}
    for path, (lines, tokens) in counts.items():
        print(f"{path:34}{lines:6}{tokens:8}")
    default_run = imported_by_default_run()
    print("imported by the main job: " + " ".join(default_run))
    results = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    top_level = [path for path in counts if "/" not in path]
    numbers = [
        ("lines of the thing", sum(counts[path][0] for path in THING), LINES_OF_THING),
        ("tokens of the thing", sum(counts[path][1] for path in THING), TOKENS_OF_THING),
        ("lines of all product", sum(lines for lines, _ in counts.values()), LINES_OF_PRODUCT),
        (
            "lines imported by the main job",
            sum(counts[path][0] for path in default_run),
            LINES_OF_DEFAULT_RUN,
        ),
        ("Python files on the top level", len(top_level), TOP_LEVEL_FILES),
        ("files of results/", len(results), RESULT_FILES),
    ]
    for path, limit in LINES_OF_FILE.items():
        numbers.append((f"lines of {path}", counts[path][0], limit))
    problems = []
    for name, value, limit in numbers:
        print(f"{name:34}{value:6,} of {limit:,}")
        if value > limit:
            problems.append(f"{name}: {value:,}, {limit:,} at most")
    for path in counts:
        problems += long_functions(path)
    return problems


def check_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    problems = []
    if len(lines) > README_LINES:
        problems.append(f"README.md: {len(lines)} lines, {README_LINES} at most")
    words = len(text.split())
    if words > README_WORDS:
        problems.append(f"README.md: {words:,} words, {README_WORDS:,} at most")
    for number, line in enumerate(lines, 1):
        if len(line) > README_COLUMNS:
            problems.append(f"README.md:{number}: {len(line)} columns, {README_COLUMNS} at most")
    for path, quoted in re.findall(r"([\w/]+\.py)`?[ |]+~([\d,]+)", text):
        quoted = int(quoted.replace(",", ""))
        lines_of_file = count(path)[0]
        if abs(quoted - lines_of_file) > 0.05 * lines_of_file + 2:
            problems.append(f"README.md says {path} ~{quoted}; it has {lines_of_file} code lines")
    return problems


def documents():
    return [
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/*.md")),
        *sorted(ROOT.glob("results/**/*.md")),
    ]


def check_tables():
    problems = []
    for path in documents():
        name = path.relative_to(ROOT)
        text = path.read_text(encoding="utf-8")
        for command, table in re.findall(r"<!-- prints: (.+?) -->\n+((?:\|.*\n)+)", text):
            run = bash(command, ROOT)
            printed = "".join(line + "\n" for line in run.stdout.splitlines() if line[:1] == "|")
            if run.returncode != 0 or printed != table:
                problems.append(f"{name}: not what `{command}` prints:\n{printed}{run.stderr}")
    return problems


def recipes(text):
    """-> [(command, [(language, first line, the lines after it)])]"""
    parts = re.split(r"^<!-- run: (.+?) -->$", text, flags=re.MULTILINE)
    found = []
    for command, rest in zip(parts[1::2], parts[2::2], strict=True):
        until_heading = re.split(r"^## ", rest, flags=re.MULTILINE)[0]
        blocks = re.findall(r"^```(\w+)\n(.*?)\n(.*?)^```", until_heading, re.M | re.S)
        found.append((command, blocks))
    return found


def apply_block(folder, language, first_line, body):
    if language not in ("python", "diff"):
        return
    path = re.match(r"# ([\w./]+)", first_line)
    if path is None:
        raise ValueError(f"the first line names no file: {first_line}")
    if language == "python":
        (folder / path[1]).write_text(first_line + "\n" + body, encoding="utf-8")
        return
    lines = body.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] in ("-", " "))
    new = "\n".join(line[1:] for line in lines if line[:1] in ("+", " "))
    replace_once(folder / path[1], old, new)


def check_blocks():
    problems = []
    for path in documents():
        for command, blocks in recipes(path.read_text(encoding="utf-8")):
            print(f"{path.relative_to(ROOT)}: {command}", flush=True)
            with tempfile.TemporaryDirectory() as temporary:
                folder = copy_of_repository(temporary)
                try:
                    for block in blocks:
                        apply_block(folder, *block)
                    run = bash(command, folder)
                except ValueError as error:
                    problems.append(f"{path.relative_to(ROOT)}: {command}: {error}")
                    continue
            if run.returncode != 0:
                problems.append(f"{command}: status {run.returncode}\n{run.stdout}{run.stderr}")
    return problems


def survives(mutant):
    """-> what is wrong with a mutant, or None if its test notices it"""
    name, path, old, new, tests = mutant
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_repository(temporary)
        try:
            replace_once(folder / path, old, new)
        except (ValueError, OSError) as error:
            return f"{name}: {error}"
        where, which = tests
        pytest = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{where}.py"]
        run = python(*pytest, "-k", which, cwd=folder)
    if run.returncode == 1 and " failed" in run.stdout:
        return None
    return f"{name}: tests/{where}.py -k '{which}' does not notice it\n{run.stdout[-600:]}"


def check_mutants():
    from mutants import MUTANTS

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(survives, MUTANTS))
    problems = [result for result in results if result is not None]
    print(f"{len(MUTANTS)} mutants, {len(MUTANTS) - len(problems)} killed")
    return problems


# --- Helpers ----------------------------------------------------------------------------------


def environment():
    """This Python is `python`, and processes that run side by side have one thread each."""
    folder = os.path.dirname(sys.executable)
    return os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{folder}:{os.environ['PATH']}"}


def python(*arguments, cwd):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)


def bash(command, cwd):
    command = ["bash", "-c", "set -euo pipefail; " + command]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)


def copy_of_repository(folder):
    copy = Path(folder) / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


def replace_once(path, old, new):
    source = path.read_text(encoding="utf-8")
    if source.count(old) != 1:
        raise ValueError(f"{path.name} holds this {source.count(old)} times, not once: {old}")
    path.write_text(source.replace(old, new), encoding="utf-8")


CHECKS = {
    "style": check_style,
    "budgets": check_budgets,
    "readme": check_readme,
    "tables": check_tables,
    "blocks": check_blocks,
    "mutants": check_mutants,
}


def main(names):
    problems = []
    for name in names or CHECKS:
        print(f"== {name}", flush=True)
        problems += CHECKS[name]()
    for problem in problems:
        print(problem, file=sys.stderr)
    print("checks failed" if problems else "checks passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
