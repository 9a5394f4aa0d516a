"""What two scripts have in common is the same to the letter; what differs is listed here. And budgets of lines."""

import ast
import difflib
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT

SCRIPTS = {"ppo.py": 500, "ppo_continuous.py": 500, "ppo_atari.py": 540, "ppo_procgen.py": 540, "ppo_lstm.py": 540}
PARENTS = {"ppo_procgen.py": "ppo_atari.py"}  # which script a variant was cut from; else ppo.py
LIMIT = {"ppo_procgen.py": 100, "ppo_lstm.py": 106}  # changed lines against that, as diff counts them; else 90
GAMES = "import ale_py  # noqa: F401 (registers its games)"
ROOMS = "Args check_args make_envs RunningMeanStd Agent compute_gae ppo_loss load_checkpoint evaluate train"
AT_THE_END = {"ppo_procgen.py": 7, "ppo_atari.py": 1}  # changed lines there: two sets of levels; idle threads
# What each variant needs otherwise than its parent, in how many changed lines
VARIANTS = {
    "ppo_continuous.py": {
        "Args": ("defaults, its deviation", 23),
        "make_envs": ("EnvPool, MuJoCo's films, bounds of actions", 18),
        "Agent.__init__": ("its policy", 5),
        "Agent.forward": ("its policy", 6),
        "Agent.act": ("its policy", 6),
        "Agent.noise": ("its policy", 2),
        "Agent.masks": ("masks are for discrete actions", 7),
        "evaluate": ("masks", 2),
        "train": ("masks, EnvPool's seed, the standard deviation", 14),
    },
    "ppo_atari.py": {
        "Args": ("defaults, the games' randomness, precision", 10),
        "check_args": ("the games' randomness", 2),
        "FireReset": ("games that can be filmed", 1),
        "FireReset.reset": ("games that can be filmed", 3),
        "make_envs": ("games by their names, their preprocessing", 13),
        "Agent.__init__": ("the Nature CNN", 16),
        "Agent.network": ("the Nature CNN", 6),
        "Agent.policy": ("frames are sent as bytes", 2),
        "Agent.numpy_policy": ("the CNN acts by itself", 6),
        "process_settings": ("all cores, memory for large layers", 5),
        "train": ("devices, lives, signs of rewards, bytes, no statistics", 17),
    },
    "ppo_procgen.py": {
        "Args": ("levels, networks, the paper's defaults", 27),
        "check_args": ("levels", 3),
        "FireReset": ("Atari's", 1),
        "FireReset.reset": ("Atari's", 3),
        "make_procgen": ("names of games, Qt, levels, films", 14),
        "make_envs": ("Atari's out, errors of EnvPool and Qt", 18),
        "Stage": ("the IMPALA network", 1),
        "Stage.__init__": ("the IMPALA network", 3),
        "Stage.forward": ("the IMPALA network", 4),
        "Agent.__init__": ("the choice of a network", 5),
        "train": ("no lives, no signs of rewards, EnvPool's seed", 6),
    },
    "ppo_lstm.py": {
        "Args": ("the memory, defaults; nothing to compile", 13),
        "check_args": ("whole environments in a minibatch; nothing to compile", 10),
        "Agent.__init__": ("the memory", 12),
        "Agent.network": ("the memory", 25),
        "Agent.forward": ("the memory", 2),
        "Agent.policy": ("the memory", 5),
        "Agent.numpy_policy": ("it acts in PyTorch", 6),
        "evaluate": ("the memory", 2),
        "process_settings": ("nothing to compile", 2),
        "train": ("the memory, whole environments in a minibatch; acts in PyTorch, nothing to compile", 23),
    },
}


def lines_of(script):
    return (ROOT / script).read_text().splitlines()


def pieces(script):
    """Top-level functions, classes, and functions in classes, by name, in order; and the rest, without the header."""
    lines, found, rest = lines_of(script), {}, []
    for node in ast.parse("\n".join(lines)).body[1:]:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        if isinstance(node, ast.ClassDef):
            members = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            found[node.name] = lines[first - 1 : members[0].lineno - 1 if members else node.end_lineno]
            for member in members:
                found[f"{node.name}.{member.name}"] = lines[member.lineno - 1 : member.end_lineno]
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = lines[first - 1 : node.end_lineno]
        else:
            rest += lines[first - 1 : node.end_lineno]
    return found, rest


def changed(first, second):
    rows = difflib.unified_diff(first, second, n=0, lineterm="")
    return [row for row in rows if row[:1] in "+-" and row[:3] not in ("+++", "---")]


def test_all_scripts_are_here():
    assert {path.name for path in ROOT.glob("ppo*.py")} == {*SCRIPTS} == {"ppo.py", *VARIANTS}


@pytest.mark.parametrize("script", VARIANTS)
class TestVariants:
    """Against the script from which they are cut."""

    def test_common_pieces(self, script):
        (ours, our_rest), (theirs, their_rest) = pieces(PARENTS.get(script, "ppo.py")), pieces(script)
        for name in {*ours} | {*theirs}:
            _, count = VARIANTS[script].get(name, ("", 0))
            rows = changed(ours.get(name, []), theirs.get(name, []))
            assert len(rows) == count, "\n".join([name, *rows])
        rests = [[line for line in rest if line not in (GAMES, "import shutil")] for rest in (our_rest, their_rest)]
        assert len(changed(*rests)) == AT_THE_END.get(script, 0)

    def test_differences_are_few(self, script):
        """The diff is the lesson what a variant needs: short enough to read."""
        rows = changed(lines_of(PARENTS.get(script, "ppo.py")), lines_of(script))
        assert len(rows) <= LIMIT.get(script, 90), "\n".join(rows)


@pytest.mark.parametrize("script", SCRIPTS)
class TestBudgets:
    """Read in one sitting: short, in the same order, complete in one file."""

    def test_lengths(self, script):
        lines = lines_of(script)
        assert len(lines) <= SCRIPTS[script]
        assert max(map(len, lines)) <= 120
        (train,) = [node for node in ast.parse("\n".join(lines)).body if getattr(node, "name", "") == "train"]
        assert train.end_lineno - train.lineno + 1 <= 180
        assert [type(node) for node in ast.walk(train)].count(ast.FunctionDef) == 1  # itself

    def test_format(self, script):
        """As `ruff format` leaves it: lines are not saved by squeezing."""
        assert subprocess.run([sys.executable, "-m", "ruff", "format", "--check", script], cwd=ROOT).returncode == 0

    def test_rooms(self, script):
        tree = ast.parse((ROOT / script).read_text())
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert len(names) <= 22
        assert [name for name in names if name in ROOMS.split()] == ROOMS.split()
        assert re.match(r'""".*?"""\n\n# /// script\n', (ROOT / script).read_text(), re.DOTALL)

    def test_imports(self, script):
        nodes = [*ast.walk(ast.parse((ROOT / script).read_text()))]
        modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        modules = {module.split(".")[0] for module in modules}
        assert len(modules & sys.stdlib_module_names) <= 10
        assert not modules & {path.stem for pattern in ("*.py", "[a-z]*/*.py") for path in ROOT.glob(pattern)}


def test_importing_them_does_nothing(tmp_path):
    """One after the other, in a process of its own: whatever one changes is seen when it is its turn."""
    code = f"""
import importlib, random, signal, numpy, torch
state = lambda: (
    torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(),
    *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)), torch.get_rng_state().tolist(), random.getstate(),
    str(numpy.random.get_state()), numpy.geterr(), dict(__import__("os").environ), *__import__("sys").path,
)
torch.utils.tensorboard = __import__("torch.utils.tensorboard")  # which sets variables of the environment itself
before = state()
for name in {[script.removesuffix(".py") for script in SCRIPTS]}:
    importlib.import_module(name)
    assert before == state(), name
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["OMP_WAIT_POLICY"] = "passive"  # all that an import sets, and only where it is not set
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [*tmp_path.iterdir()] == []
