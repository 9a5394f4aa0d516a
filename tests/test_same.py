"""What two scripts have in common is the same to the letter, in the same order; what differs is listed here."""

import ast
import difflib

import pytest

from conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("ppo*.py"))
GAMES = "import ale_py  # noqa: F401 (registers its games)"
LIMIT = 90  # changed lines between ppo.py and a script cut from it, as diff counts them
# What each variant needs otherwise than ppo.py, in how many changed lines
VARIANTS = {
    "ppo_continuous.py": {
        "Args": ("defaults", 20),
        "make_envs": ("its name", 2),
        "forbidden_choices": ("masks are for discrete actions", 13),
        "Agent": ("its policy, in the docstring", 2),
        "Agent.__init__": ("its policy", 5),
        "Agent.noise": ("its policy", 2),
        "Agent.evaluate": ("its policy", 7),
        "sample_actions": ("its policy", 7),
        "to_env": ("counted from the space's start, or clipped to its bounds", 2),
        "play": ("masks, or the standard deviation", 3),
        "health_report": ("the row on exploration", 2),
        "train": ("masks, or the standard deviation", 13),
    },
    "ppo_atari.py": {
        "Args": ("defaults, the games' randomness, the network, its precision", 15),
        "pick_device": ("auto may be a GPU", 1),
        "check_args": ("the games' randomness", 1),
        "FireReset": ("games that can be filmed", 3),
        "FireReset.reset": ("games that can be filmed", 5),
        "make_envs": ("games by their names, its name", 12),
        "Residual": ("a network for pixels", 3),
        "Residual.forward": ("a network for pixels", 2),
        "Trunk": ("a network for pixels", 4),
        "Trunk.__init__": ("a network for pixels", 13),
        "Trunk.forward": ("a network for pixels", 6),
        "Agent.__init__": ("shared features", 3),
        "train": ("lives, signs of rewards, bytes, precision, threads", 10),
    },
}


def pieces(script):
    """Top-level functions, classes, and functions in classes, by name, in order; and the rest, without docstring."""
    text = (ROOT / script).read_text()
    lines, found, rest = text.splitlines(), {}, []
    for node in ast.parse(text).body[1:]:
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


def test_all_scripts_are_compared():
    assert sorted(["ppo.py", *VARIANTS]) == SCRIPTS


@pytest.mark.parametrize("script", VARIANTS)
class TestVariants:
    """Against ppo.py, from which they are cut."""

    def test_common_pieces(self, script):
        (ours, our_rest), (theirs, their_rest) = pieces("ppo.py"), pieces(script)
        for name in {*ours} | {*theirs}:
            _, count = VARIANTS[script].get(name, ("", 0))
            rows = changed(ours.get(name, []), theirs.get(name, []))
            assert len(rows) == count, "\n".join([name, *rows])
        assert our_rest == [line for line in their_rest if line != GAMES]

    def test_rooms(self, script):
        """In the same order."""
        ours, theirs = pieces("ppo.py")[0], pieces(script)[0]
        common = {*ours} & {*theirs}
        assert [name for name in ours if name in common] == [name for name in theirs if name in common]

    def test_differences_are_few(self, script):
        """The diff is the lesson what a variant needs: short enough to read."""
        rows = changed(*((ROOT / name).read_text().splitlines() for name in ("ppo.py", script)))
        assert len(rows) <= LIMIT, "\n".join(rows)
