"""The command for forks, `python -m pytest tests --script my_ppo.py`: what it finds, skips and says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT
from forks import KINDS, Script, chosen, table
from mutants import MUTANTS
from run_mutants import IN_FORKS, other_network, plantings_in_forks


def command(scripts, *options):
    """Run it on scripts, {name: text}: exit code, output, and for each the table, a line of words for each detail."""
    words = [sys.executable, "-m", "pytest", str(ROOT / "tests"), "-p", "no:cacheprovider"]
    for name, text in scripts.items():
        Path(f"{name}.py").write_text(text)
        words += ["--script", f"{name}.py"]
    environment = {key: x for key, x in os.environ.items() if not key.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, *options], capture_output=True, text=True, env=environment)
    parts = re.split(r"^\S*\b(\w+)\.py: (\w+ actions, .*)$", done.stdout, flags=re.MULTILINE)[1:]
    for name, kind in zip(parts[::3], parts[1::3], strict=True):
        words = {"bug_28": "continuous actions, vector observations", "bug_16": KINDS["pixels"][0]}
        assert kind == words.get(name, "discrete actions, vector observations")
    tables = {name: rows_of(table) for name, table in zip(parts[::3], parts[2::3], strict=True)}
    return done.returncode, done.stdout + done.stderr, tables


def rows_of(table):
    rows = re.findall(r"^ *(\S.*?)  .*?  (proven|BROKEN|not testable) +(.*)$", table, re.MULTILINE)
    return {detail: (word, where) for detail, word, where in rows}


FOUND = [
    ("ppo.py", "no clipping", "8", "the_policy_loss or total_loss or gae_is"),
    ("ppo_continuous.py", "statistics of the last rollout", "28", "normalised or second_implementation"),
    ("ppo_atari.py", "lives do not matter", "16", "lost_life or sign"),
]


def test_bugs_in_forks_are_found():
    """In copies with another network and another name. `run_mutants.py --fork` plants 26, and runs all tests. An error
    inside a fork is no missing piece, and it may import what lies beside it. The command shares tests out."""
    forks, tests = {}, []
    for script, bug, detail, its_tests in FOUND:
        assert bug in IN_FORKS[script]
        (mutant,) = [mutant for mutant in MUTANTS if mutant.name == bug and script in mutant.scripts]
        fork = other_network((ROOT / script).read_text())
        assert fork != (ROOT / script).read_text()
        forks[f"bug_{detail}"] = mutant.plant(fork)
        tests.append(f"(bug_{detail} and ({its_tests}))")
    Path("beside.py").write_text("import numpy\n")
    fork = (ROOT / "ppo.py").read_text().replace("import numpy as np\n", "from beside import numpy as np\n")
    forks["bug_5"] = fork.replace("    deltas = rewards", "    np.no_such_function()\n    deltas = rewards")
    code, output, tables = command(forks, "-k", " or ".join([*tests, "(bug_5 and gae_is)"]))
    assert code == 1 and "created: 2/2 workers" in output, output
    assert [*tables] == [*forks]
    for name, rows in tables.items():
        assert rows[name.removeprefix("bug_")][0] == "BROKEN", output
        assert name == "bug_5" or "proven" in {word for word, _ in rows.values()}  # not everything is called broken
    assert "no_such_function" in output
    code, output, tables = command({"bug_5": forks["bug_5"]}, "-n0", "-k", "gae_is")
    assert code == 1 and tables["bug_5"]["5"][0] == "BROKEN", output


NOT_TESTABLE = {  # in the forks of examples/, and why
    "network": {},
    "novelty": dict.fromkeys(("30", "31", "rewards", "reference"), "changed on purpose: rewards"),
    "auxiliary": {"reference": "looked for a loss of policy, entropy and value alone"},
}
TESTS_OF_EXAMPLES = "rewards or loss or weights or agrees or gae_is or share_nothing or distribution or clip"


def test_the_forks_of_the_examples_and_one_that_lacks_pieces():
    """All is proven that a fork has not changed. What it renamed, removed, gave other arguments or meant to change is
    named, and the rest tested. Several can be tested at once, and get a table each."""
    fork = (ROOT / "ppo.py").read_text()
    forks = {}
    for name in NOT_TESTABLE:
        Path("ppo.py").write_text(fork)
        patch = ["git", "apply", ROOT / "examples" / f"{name}.diff"]
        subprocess.run(patch, check=True, env=os.environ | {"GIT_DIR": os.devnull})
        forks[name] = Path("ppo.py").read_text()
    for old, new in {
        "compute_gae": "estimate_advantages",
        "    anneal_clip: bool = False": "    # anneal_clip: bool = False",
        "args.anneal_clip": "False",
        "outputs: int, gain: float = 2**0.5)": "outputs: int, *, gain: float = 2**0.5)",
        "linear(64, outputs, 0.01)": "linear(64, outputs, gain=0.01)",
        "linear(64, 1, 1.0)": "linear(64, 1, gain=1.0)",
    }.items():
        assert old in fork
        fork = fork.replace(old, new)
    forks["lacks"] = fork + "\n# changed on purpose: 9, 13\n"
    older = (ROOT / "ppo.py").read_text()  # its loss is given the clip range
    for old, new in {
        "left: torch.Tensor, args: Args) -> tuple[": "clip: torch.Tensor, args: Args) -> tuple[",
        "clip_coef = args.clip_coef * (left if args.anneal_clip else 1)": "clip_coef = clip",
        "args.ent_coef * (left if args.anneal_ent else 1)": "args.ent_coef",
        "minibatch, left, args)": "minibatch, args.clip_coef * (left if args.anneal_clip else 1), args)",
    }.items():
        assert older.count(old) == 1
        older = older.replace(old, new)
    forks["older"] = older
    tests = " or ".join(f"({name} and ({TESTS_OF_EXAMPLES}))" for name in NOT_TESTABLE)
    pieces = "gae_is or clip_range or initial_weights or value_loss or share_nothing or total_loss"
    code, output, tables = command(forks, "-n0", "-k", f"{tests} or ((lacks or older) and ({pieces}))")
    assert code == 0 and "workers" not in output, output
    assert [*tables] == [*forks]
    lacks, older = tables.pop("lacks"), tables.pop("older")
    assert {detail for detail, (word, _) in older.items() if word != "not testable"} == {"2", "5", "13", "26"}
    assert older["9"][1].startswith("looked for left ")
    for name, rows in tables.items():
        assert len(rows) > 12 and {word for word, _ in rows.values()} <= {"proven", "not testable"}
        assert {detail for detail, (word, _) in rows.items() if word == "not testable"} == {*NOT_TESTABLE[name]}
        assert all(rows[detail][1].startswith(reason) for detail, reason in NOT_TESTABLE[name].items())
    assert {detail: word for detail, (word, _) in lacks.items() if word != "not testable"} == {"10": "proven"}
    assert lacks["5"] == (
        "not testable",
        "looked for compute_gae (test_fork.py::test_gae_is_the_sum_of_its_definition)",
    )
    assert lacks["a"][1].startswith("looked for anneal_clip ")
    assert lacks["2"][1].startswith("looked for linear() with other arguments ")
    assert lacks["9"][1].startswith("changed on purpose: 9 ")
    assert lacks["13"][1].startswith("changed on purpose: 13 ")


def test_the_list_of_bugs_for_forks():
    names = [(mutant.name, script) for mutant in MUTANTS for script in mutant.scripts]
    for script, bugs in IN_FORKS.items():
        assert all((bug, script) in names for bug in bugs.split(", "))
    assert len(plantings_in_forks()) == sum(len(bugs.split(", ")) for bugs in IN_FORKS.values()) >= 20


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", ["--script", "other.py"], "there is no such file"),
        ("x = 1", [], "can't be tested as a fork of these scripts: AttributeError: module"),
        (
            "class Args:\n    rnn = 'gru'",
            [],
            "can't be tested as a fork of these scripts: NotImplementedError: its policy has",
        ),
        ("x = ", [], "can't be tested as a fork of these scripts: SyntaxError: invalid syntax"),
    ],
)
def test_mistakes(text, options, message):
    if text == "x = ":
        code, output, _ = command({"my_ppo": text}, *options)
        assert code == 4 and output.startswith("ERROR: --script ") and "Traceback" not in output
    else:  # without the seconds of a new process
        Path("my_ppo.py").write_text(text)
        config = SimpleNamespace(
            getoption=lambda _: options[1:] or ["my_ppo.py"], invocation_params=SimpleNamespace(dir=".")
        )
        with pytest.MonkeyPatch.context() as patch, pytest.raises(pytest.UsageError) as stopped:
            patch.setattr(sys, "path", [*sys.path])
            chosen(config)
        output = str(stopped.value)
        assert output.startswith("--script ") and "\n" not in output
    assert message in output


def test_the_table_without_groups():
    """Which pytest-xdist writes behind the names of tests."""
    passed = [
        SimpleNamespace(nodeid=f"tests/test_fork.py::test_x{end}", outcome="passed", user_properties=[("fork", word)])
        for end, word in {
            "[my@ppo]@two processes": ("my@ppo.py", "discrete", "b"),
            "@a": ("b.py", "pixels", "8"),
        }.items()
    ]
    scripts = [Script(Path("my@ppo.py"), "discrete"), Script(Path("b.py"), "pixels")]
    words = [line.split()[-1] for line in table({"passed": passed}, scripts) if " proven  " in line]
    assert words == ["test_fork.py::test_x"] * 2
