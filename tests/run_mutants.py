"""Plant bugs, one at a time, and see that a test fails for each.

    python tests/run_mutants.py                       # all of mutants.py
    python tests/run_mutants.py "no lambda" "arg-max" # these
    python tests/run_mutants.py --changed             # those in lines changed since main, or else a sample of ten
    python tests/run_mutants.py --fork                # 26 in forks: another network, another name; `--script` runs

Each mutant is planted in a copy of the repository, where the fast tests run up to the first that fails; not those that
compare source. Prints which test killed it. At the end, the tests that killed run once more without any bug, and must
pass. Exit code 1 if a mutant survived, 2 if the text to change is not there exactly once.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
COMPARE_SOURCE = {"test_same.py", "test_mutants.py"}
KINDS = {  # of tests, by script
    "ppo.py": "discrete",
    "ppo_continuous.py": "continuous",
    "ppo_atari.py": "atari",
    "ppo_procgen.py": "procgen",
    "ppo_lstm.py": "lstm",
}
SAMPLE = (
    ("time limits end", "ppo_continuous.py"),
    ("inverted ratio", "ppo_atari.py"),
    ("the better value", "ppo.py"),
    ("reset steps count", "ppo_continuous.py"),
    ("arg-max", "ppo.py"),
    ("Adam's eps 1e-8", "ppo_atari.py"),
    ("rewards centred", "ppo_continuous.py"),
    ("clipped actions are stored", "ppo_continuous.py"),
    ("lives do not matter", "ppo_atari.py"),
    ("Adam forgets", "ppo.py"),
)
IN_FORKS = {
    "ppo.py": (
        "every rollout begins with a reset, weights not orthogonal, the learning rate stays, not shuffled, "
        "no clipping, less entropy is better, KL from new to old, entropy of one component, masks of the step before, "
        "no target KL, reset steps count, arg-max, Adam forgets, "
        "evaluation changes statistics, gradients of one process"
    ),
    "ppo_continuous.py": (
        "time limits end, the better value, Adam's eps 1e-8, components averaged, clipped actions are stored, "
        "statistics of the last rollout, rewards centred"
    ),
    "ppo_atari.py": "advantages not normalised, no gradient clip, lives do not matter, bytes as they are",
}
Planting = tuple[Mutant, str]  # a mutant, and the script that gets it


def changed_lines() -> dict[str, set[int]]:
    """The lines of each script that differ from main, or on main itself from the commit before."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    base = git("merge-base", "HEAD", "origin/main")
    if base in ("", git("rev-parse", "HEAD")):
        base = "HEAD~1"
    lines, script = {}, ""
    for row in git("diff", "--unified=0", base, "--", "ppo*.py").splitlines():
        if row.startswith("+++ "):
            script = row.removeprefix("+++ b/")
        elif match := re.match(r"@@ .* \+(\d+)(?:,(\d+))? @@", row):
            first, count = int(match[1]), int(match[2] or 1)
            lines.setdefault(script, set()).update(range(first, first + count))
    return lines


def is_changed(planting: Planting, lines: dict[str, set[int]]) -> bool:
    mutant, script = planting
    text, its_lines = (ROOT / script).read_text(), set()
    for find, _ in mutant.edits:
        before = text.partition(find)[0].count("\n") + 1
        its_lines |= {*range(before, before + find.count("\n") + 1)}
    return not lines.get(script, set()).isdisjoint(its_lines)


def first_tests(planting: Planting) -> list[str]:
    """Those that the mutant names, beginning with those of the script."""
    mutant, script = planting
    reference = "test_lstm.py" if script == "ppo_lstm.py" else f"test_reference.py::test_{KINDS[script]}"
    tests = [reference if test == "test_reference.py" else test for test in mutant.first]
    return sorted(tests, key=lambda test: not test.startswith(f"test_{KINDS[script]}.py"))


def pytest(folder: Path, tests: list[str], threads: int) -> tuple[int, str]:
    """Run tests up to the first that fails: the exit code, and the test that failed or the end of the output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open in processes that a bug leaves behind
        try:
            code = subprocess.run(
                command, cwd=folder / "tests", env=environment, stdout=output, stderr=output, timeout=900
            ).returncode
        except subprocess.TimeoutExpired:
            return 1, "no end after 15 minutes"
        output.seek(0)
        text = output.read()
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    return code, failed[1] if failed else text[-1000:]


def copy(folder: str) -> Path:
    ignored = shutil.ignore_patterns(".git", "__pycache__", "runs", "results", ".venv", ".*cache")
    return Path(shutil.copytree(ROOT, Path(folder, "repository"), ignore=ignored))


def plant(planting: Planting, threads: int) -> tuple[int, str, float]:
    """As `pytest`, with the bug; and the seconds that it took."""
    mutant, script = planting
    start = time.time()
    first, everything = first_tests(planting), sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    everything = [name for name in everything if name not in COMPARE_SOURCE]
    with tempfile.TemporaryDirectory() as folder:
        repository = copy(folder)
        (repository / script).write_text(mutant.plant((repository / script).read_text()))
        code, test = pytest(repository, first, threads)
        if code == 0:
            code, test = pytest(repository, everything, threads)
        return code, test, time.time() - start


def other_network(text: str) -> str:
    """A script with another network: as a fork has it."""
    changed = text.replace("nn.Tanh()", "nn.ReLU()").replace("64 * 7 * 7, 512", "64 * 7 * 7, 256")
    return changed.replace("linear(512,", "linear(256,")


def plant_in_fork(planting: Planting, threads: int) -> tuple[int, str, float]:
    """As `plant`, in a fork of the script, on which the tests of `--script` run."""
    mutant, script = planting
    start, command = time.time(), ["--script", "my_ppo.py", "-p", "no:xdist"]
    with tempfile.TemporaryDirectory() as folder:
        repository = copy(folder)
        text = mutant.plant((repository / script).read_text())
        (repository / "tests" / "my_ppo.py").write_text(other_network(text))
        return *pytest(repository, [".", *command], threads), time.time() - start


def plantings_in_forks() -> list:
    """The bugs of `IN_FORKS`, each with its script."""
    everything = [(mutant, script) for mutant in MUTANTS for script in mutant.scripts]
    return [(mutant, script) for mutant, script in everything if mutant.name in IN_FORKS.get(script, "").split(", ")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="names of mutants, or of scripts to plant them in; all if none is given"
    )
    parser.add_argument("--changed", action="store_true", help="those in changed lines, or else a sample of ten")
    parser.add_argument("--fork", action="store_true", help="plant them in forks: those named, or a list of 26")
    parser.add_argument("--limit", type=int, default=10, help="with --changed: so many at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    args = parser.parse_args()

    everything = [(mutant, script) for mutant in MUTANTS for script in mutant.scripts]
    for mutant, script in everything:
        try:
            mutant.plant((ROOT / script).read_text())
        except ValueError as error:
            print(f"{script}: {error}")
            return 2
    known = {name for mutant, script in everything for name in (mutant.name, script)}
    if unknown := set(args.names) - known:
        print(f"there is no mutant {', '.join(unknown)}")
        return 2
    chosen = [p for p in everything if not args.names or {p[0].name, p[1]} & {*args.names}]
    if args.changed:
        lines = changed_lines()
        chosen = [planting for planting in everything if is_changed(planting, lines)]
        print(f"{len(chosen)} mutants in changed lines", end="")
        chosen = chosen or [planting for planting in everything if (planting[0].name, planting[1]) in SAMPLE]
        step = max(1, -(-len(chosen) // args.limit))
        chosen = chosen[::step]
        print(f": {len(chosen)} are planted")

    if args.fork and not args.names:
        chosen = plantings_in_forks()
    survived, killers, start = [], set(), time.time()
    with ThreadPoolExecutor(args.jobs) as pool:
        threads = max(1, os.cpu_count() // args.jobs)
        run = plant_in_fork if args.fork else plant
        jobs = {pool.submit(run, planting, threads): planting for planting in chosen}
        for i, job in enumerate(as_completed(jobs), 1):
            (mutant, script), (code, test, seconds) = jobs[job], job.result()
            verdict = {0: "SURVIVED", 1: "killed by " + test}.get(code, f"pytest ended with {code}: {test}")
            print(
                f"{i}/{len(chosen)} {script}: {mutant.name} ({mutant.breaks}): {verdict}, {seconds:.0f} s", flush=True
            )
            if code == 1:
                killers.add(test)
            else:
                survived.append((mutant, script))
    print(f"{len(chosen)} mutants, {len(chosen) - len(survived)} killed by {len(killers)} tests, in ", end="")
    print(f"{(time.time() - start) / 60:.1f} minutes")
    with tempfile.TemporaryDirectory() as folder:
        innocent = sorted(test for test in killers if "::" in test and not args.fork)
        code, test = pytest(copy(folder), innocent, os.cpu_count()) if innocent else (0, "")
    if code:
        print(f"without any bug, {test} fails too: it proves nothing")
    for mutant, script in survived:
        print(f"SURVIVED: {script}: {mutant.name} ({mutant.breaks})")
    return 1 if survived or code else 0


if __name__ == "__main__":
    raise SystemExit(main())
