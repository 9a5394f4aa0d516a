"""The list of bugs to plant fits the scripts as they are. That tests notice them, `run_mutants.py` shows."""

import re

import pytest

from conftest import ROOT
from mutants import MUTANTS
from run_mutants import SAMPLE, is_changed

PLANTINGS = [(mutant, script) for mutant in MUTANTS for script in mutant.scripts]


@pytest.mark.parametrize("script", sorted({script for _, script in PLANTINGS}))
def test_each_changes_one_place(script):
    text = (ROOT / script).read_text()
    for mutant in [mutant for mutant, its_script in PLANTINGS if its_script == script]:
        planted = mutant.plant(text)
        assert planted != text, mutant.name
        compile(planted, script, "exec")


def test_the_tests_are_there():
    for mutant in MUTANTS:
        for file, *names in (test.split("::") for test in mutant.first):
            text = (ROOT / "tests" / file).read_text()
            assert all(re.search(rf"^ *(class|def) {name}\b", text, re.MULTILINE) for name in names), mutant.name


def test_names():
    names = [(mutant.name, script) for mutant, script in PLANTINGS]
    assert len({*names}) == len(names)
    assert {*SAMPLE} <= {*names}
    assert len(SAMPLE) == 10


def test_their_numbers_in_the_readme():
    text, alone = (ROOT / "tests" / "README.md").read_text(), [mutant.scripts for mutant in MUTANTS]
    assert f"lists {len(MUTANTS)} bugs" in text and f"one at a time, {len(PLANTINGS)} in all" in text
    for script in ("ppo_procgen.py", "ppo_lstm.py"):
        assert f"the {alone.count((script,))} of `{script}` alone" in text


def test_every_detail_has_one():
    planted = set()
    for mutant in MUTANTS:
        for numbers in re.findall(r"details? ([\da-d]+(?:(?:, | and )[\da-d]+)*)", mutant.breaks):
            planted |= {*re.findall(r"\d+|[a-d]\b", numbers)}
    assert planted == {*map(str, range(1, 38)), *"abcd"}


def test_changed_lines():
    """A mutant is chosen by the lines that its text is on."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "every rollout begins with a reset")
    text = (ROOT / "ppo.py").read_text()
    line = text.splitlines().index("        obs[0], masks[0] = obs[T], masks[T]") + 1
    assert is_changed((mutant, "ppo.py"), {"ppo.py": {line}})
    assert not is_changed((mutant, "ppo.py"), {"ppo.py": {line - 1, line + 2}})
    assert not is_changed((mutant, "ppo.py"), {"ppo_atari.py": {line}})
