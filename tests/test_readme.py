"""What the documents show works as shown: README's code and table, the files it names, all docstrings."""

import contextlib
import doctest
import importlib.util
import inspect
import io
import pkgutil
import re
from pathlib import Path

import pytest
import support_table

import fastconv
from fastconv.backends import BACKENDS
from fastconv.bench import report, suite

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)

# `print(expression)  # what it prints`
PRINTS = re.compile(r"^ *print\(.*\)  # (.+)$", flags=re.MULTILINE)


def skip_without(text):
    """Skip where ``text`` shows a backend that cannot run here."""
    for name, usable in fastconv.available_backends().items():
        if usable is not True and f'backend="{name}"' in text:
            pytest.skip(f"shows the backend {name}: {usable}")


@pytest.mark.smoke
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_code_prints_what_its_comments_say(block, tmp_path, monkeypatch):
    skip_without(block)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    told = printed.getvalue().splitlines()
    for wanted in PRINTS.findall(block):
        assert wanted in told


def test_quickstart_comes_first_and_is_short():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 10
    assert PRINTS.search(BLOCKS[0])


def test_support_table_is_up_to_date():
    start = README.index(support_table.BEGIN) + len(support_table.BEGIN)
    shown = README[start : README.index(support_table.END)]
    assert shown == support_table.table(), "run: python tests/support_table.py"


def test_measured_table_is_that_of_the_results():
    results = suite.load(ROOT / "benchmarks/results/zen5-2cpu.json")
    assert report.markdown(results) in README


def test_support_table_holds_every_operation():
    helpers = r"_backward$|^plan_|^set_|^get_|^use_|^show_|^available_|_context$"
    operations = {
        re.sub(r"\dd", "Nd", name)
        for name in fastconv.__all__
        if re.search(r"conv|pool|fold", name) and not re.search(helpers, name)
    }
    assert operations == set(support_table.OPERATIONS)


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_files_that_are_named_exist(text):
    named = set(re.findall(r"`([\w./-]+\.(?:py|pyi|cpp|h|inl|md|toml))`", text))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert named
    assert not {name for name in named if not (ROOT / name).exists()}


def modules_with_docstrings():
    unusable = {
        BACKENDS[name].module for name, usable in fastconv.available_backends().items() if usable is not True
    }
    if importlib.util.find_spec("cupy") is None:
        unusable.add("fastconv.backends.cupy.compile")
    for found in pkgutil.walk_packages(fastconv.__path__, "fastconv.", onerror=lambda _: None):
        if found.name not in {*unusable, "fastconv.__main__", "fastconv._native"}:
            yield found.name


@pytest.mark.parametrize("name", ["fastconv", *modules_with_docstrings()])
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    skip_without(inspect.getsource(module))
    failures, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failures == 0
