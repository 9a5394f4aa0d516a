"""What two scripts have in common is the same to the letter, in the same order; what differs is listed here."""

import ast
import difflib
import itertools

import pytest

from conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("ppo*.py"))
LIMIT = 90  # changed lines between two whole files, as diff counts them
# What continuous actions need otherwise than discrete ones, in how many changed lines
VARIANTS = {
    "Args": ("defaults", 22),
    "make_envs": ("its action space", 2),
    "forbidden_choices": ("masks are for discrete actions", 13),
    "Agent": ("its policy, in the docstring too", 2),
    "Agent.__init__": ("its policy", 5),
    "Agent.noise": ("its policy", 2),
    "Agent.evaluate": ("its policy", 7),
    "sample_actions": ("its policy", 7),
    "to_env": ("counted from the space's start, or clipped to its bounds", 2),
    "play": ("masks, or the standard deviation", 3),
    "health_report": ("the row on exploration", 2),
    "train": ("masks, or the standard deviation", 12),
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


def test_there_are_scripts_to_compare():
    assert {"ppo.py", "ppo_continuous.py"} <= set(SCRIPTS)


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(SCRIPTS, 2)])
class TestPairs:
    def test_common_pieces(self, first, second):
        (ours, our_rest), (theirs, their_rest) = pieces(first), pieces(second)
        for name in {*ours} | {*theirs}:
            _, count = VARIANTS.get(name, ("", 0))
            rows = changed(ours.get(name, []), theirs.get(name, []))
            assert len(rows) == count, "\n".join([name, *rows])
        assert our_rest == their_rest

    def test_rooms(self, first, second):
        """In the same order."""
        ours, theirs = pieces(first)[0], pieces(second)[0]
        common = {*ours} & {*theirs}
        assert [name for name in ours if name in common] == [name for name in theirs if name in common]

    def test_differences_are_few(self, first, second):
        """The diff is the lesson what a variant needs: short enough to read."""
        rows = changed(*((ROOT / name).read_text().splitlines() for name in (first, second)))
        assert len(rows) <= LIMIT, "\n".join(rows)
