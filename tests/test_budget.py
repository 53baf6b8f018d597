"""The budget of lines: one person reads the whole in an evening.    python tests/test_budget.py    prints the count."""
import ast
import glob
import io
import os
import tokenize

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CORE = [f"{name}.py" for name in ("model", "sampler", "logprobs", "rewards", "grpo", "ppo", "train")]


def code_lines(path):
    """Physical lines that hold code: no blanks, no comments, no docstrings."""
    source = open(path, encoding="utf-8").read()
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def count():
    files = [os.path.relpath(f, ROOT) for where in ("", "data", "data/*", "runs") for f in glob.glob(os.path.join(ROOT, where, "*.py"))]
    return {f: code_lines(os.path.join(ROOT, f)) for f in sorted(files)}


def test_budget():
    lines = count()
    assert sum(lines.get(f, 0) for f in CORE) <= 1000 and sum(lines.values()) <= 2530
    assert lines["grpo.py"] + lines["ppo.py"] <= 150


def test_the_readme_quotes_the_count():
    lines, readme = count(), open(os.path.join(ROOT, "README.md"), encoding="utf-8").read()
    core, everything = sum(lines.get(f, 0) for f in CORE), sum(lines.values())
    assert f"counts {core:,} code lines in the core and {everything:,} in all product code" in readme
    assert f"together the two have {lines['grpo.py'] + lines['ppo.py']} code lines" in readme


def test_lines_are_lines():
    for path in count():
        for number, line in enumerate(open(os.path.join(ROOT, path), encoding="utf-8"), 1):
            assert len(line.rstrip("\n")) <= 120, f"{path}:{number}"


if __name__ == "__main__":
    found = count()
    for path, n in found.items():
        print(f"{n:5d}  {path}")
    print(f"{sum(found.get(f, 0) for f in CORE):5d}  core (of 1,000): {', '.join(CORE)}\n{sum(found.values()):5d}  all product code (of 2,530)")
