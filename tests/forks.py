"""Which tests make sense for a fork of a script, and what they say of it: `python -m pytest tests --script my_ppo.py`.

Tests that ask for the fixture `fork` (all in test_fork.py) get a script as a module: usually each of ours, with
`--script` the files that are named, and no other test runs. A test says which details it proves, and for which kinds of
scripts. What a fork renamed or removed is no bug: a test that finds no such piece is skipped, with what it looked for.
What it changed on purpose it can say itself, in a line of its own: `# changed on purpose: 2, 13`.
"""

import ast
import importlib.util
import re
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest

TESTS = Path(__file__).resolve().parent
OURS = {"ppo.py": "discrete", "ppo_continuous.py": "continuous", "ppo_atari.py": "pixels", "ppo_procgen.py": "images"}
KINDS = {  # and an environment that a script of this kind takes
    "discrete": ("discrete actions, vector observations", "worlds:Probe1"),
    "continuous": ("continuous actions, vector observations", "worlds:Continuous"),
    "pixels": ("discrete actions, pixels, Atari's games", "Pong"),
    "images": ("discrete actions, pixels", "worlds:Pixel1"),
}
# Numbers are those of Huang et al., 2022, "The 37 Implementation Details of Proximal Policy Optimization"
DETAILS = {
    "1": "vector environments, rollouts across episodes",
    "2": "orthogonal weights, small ones in the last layer",
    "3": "Adam with ε = 1e-5",
    "4": "learning rate annealed to 0",
    "5": "GAE, bootstrapped from the last observation",
    "6": "shuffled minibatches, each sample once an epoch",
    "7": "advantages normalised per minibatch",
    "8": "clipped surrogate objective",
    "9": "clipped value loss",
    "10": "total loss with entropy bonus",
    "11": "gradients clipped to a global norm",
    "12": "diagnostics: KL, clip fraction, explained variance",
    "13": "separate networks for policy and value",
    "14": "no-ops at the start of a game",
    "15": "every 4th frame, the maximum of the last two",
    "16": "a lost life is an end for learning",
    "17": "FIRE at the start of a game",
    "18": "84 x 84 in gray, by area",
    "19": "rewards clipped to their sign",
    "20": "four stacked frames",
    "21": "one network for policy and value",
    "22": "pixels divided by 255",
    "23": "Gaussian policy",
    "24": "deviations that do not depend on the state",
    "25": "log-probabilities summed over components",
    "26": "separate networks for policy and value",
    "27": "actions clipped for the environment only",
    "28": "observations normalised",
    "29": "… and clipped to ±10",
    "30": "rewards in units of their return's deviation",
    "31": "… and clipped to ±10",
    "37": "several components: independent categoricals",
    "a": "clip range annealed",
    "b": "several processes: gradients averaged",
    "c": "epochs end at a target KL",
    "d": "forbidden actions are masked",
    "resets": "nothing is learned from reset steps",
    "time limits": "bootstrapped; terminations are not",
    "sampling": "actions are samples of the newest policy",
    "rewards": "learned from as the environment pays them",
    "returns": "reported as the environment pays them",
    "seeds": "the same seed gives the same run",
    "resuming": "goes on as if it had never stopped",
    "evaluating": "plays the trained policy, changes nothing",
    "probes": "learns what can be learned one way only",
    "reference": "the parameters of a second implementation",
}


@dataclass
class Script:
    """A script, ours or a fork."""

    path: Path
    kind: str = ""

    @cached_property
    def module(self):
        if self.path.parent == TESTS.parent and self.path.name in OURS:
            return importlib.import_module(self.path.stem)
        name = "fork_" + re.sub(r"\W", "_", str(self.path))
        sys.path.append(str(self.path.parent))  # for what lies beside it
        spec = importlib.util.spec_from_file_location(name, self.path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    @cached_property
    def on_purpose(self) -> set[str]:
        found = re.findall(r"^ *# changed on purpose: (.*)$", self.path.read_text(), re.MULTILINE)
        return {key.strip() for line in found for key in line.split(",")}

    def find_kind(self) -> None:
        """From the spaces that its environments may have. Raises pytest.UsageError if this is no fork of ours."""
        try:
            fork = self.module
            if hasattr(fork.Args, "rnn"):
                raise NotImplementedError("its policy has a memory, and only test_lstm.py knows that, for ppo_lstm.py")
            for self.kind, (_, env_id) in KINDS.items():
                try:
                    fork.make_envs(fork.Args(env_id=env_id), 1).close()
                    return
                except SystemExit:
                    continue
            reason = "its make_envs takes neither discrete nor continuous actions, neither vectors nor pixels"
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
        raise pytest.UsageError(f"--script {self.path}: can't be tested as a fork of these scripts: {reason}")


def chosen(config) -> list[Script]:
    """Those that the tests of `fork` run on."""
    if not hasattr(config, "scripts"):
        paths = [Path(config.invocation_params.dir, path).resolve() for path in config.getoption("--script")]
        config.scripts = [Script(path) for path in paths]
        if missing := [script.path for script in config.scripts if not script.path.is_file()]:
            raise pytest.UsageError(f"--script {missing[0]}: there is no such file")
        for script in config.scripts:
            script.find_kind()
        config.scripts = config.scripts or [Script(TESTS.parent / name, kind) for name, kind in OURS.items()]
    return config.scripts


def looked_for(error: Exception, script: Script) -> str | None:
    """Which piece of the script a test did not find, if that is why it failed; not if the script itself stumbled."""
    files = [Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)]
    where = [file for file in files if file == script.path or file.parent == TESTS]
    if not where or where[-1] == script.path:
        return None
    text = str(error)
    if isinstance(error, AttributeError):
        found = re.match(r".*?(module|object).* has no attribute '(\w+)'", text)
        ours = re.search(r"'Agent'|'Args'|" + re.escape(script.module.__name__), text)
        return f"looked for {found[2]}" if found and ours else None
    if isinstance(error, TypeError):
        found = re.search(r"unexpected keyword argument '(\w+)'|(\w+\(\)) (?:takes|missing).*arguments?", text)
        return f"looked for {found[1] or found[2] + ' with other arguments'}" if found else None
    return f"looked for {error.args[0]}" if isinstance(error, KeyError) else None


def script_of(item) -> Script | None:
    """The script that a test is run on."""
    script = getattr(item, "callspec", SimpleNamespace(params={})).params.get("fork")
    return script if isinstance(script, Script) else None


@contextmanager
def skip_what_is_not_there(item):
    """With `--script` alone: our own scripts have all that tests look for."""
    reason = None
    try:
        yield
    except (AttributeError, TypeError, KeyError) as error:
        script = item.config.getoption("--script") and script_of(item)
        reason = script and looked_for(error, script)
        if not reason:
            raise
    except pytest.skip.Exception as skipped:
        if script_of(item) and not item.config.getoption("--script"):
            pytest.fail(str(skipped))
        raise
    if reason:
        pytest.skip(reason)


class Forks:
    """The plugin."""

    def pytest_generate_tests(self, metafunc):
        if "fork" in metafunc.fixturenames:
            kinds = next(metafunc.definition.iter_markers("proves")).kwargs["kinds"].split()
            scripts = [script for script in chosen(metafunc.config) if script.kind in kinds]
            metafunc.parametrize("fork", scripts, ids=[script.path.stem for script in scripts], indirect=True)

    def pytest_ignore_collect(self, collection_path, config):
        only_forks = config.getoption("--script") and collection_path.is_file()
        return True if only_forks and collection_path.name != "test_fork.py" else None

    def pytest_collection_modifyitems(self, config, items):
        if config.getoption("--script"):
            meant = [item for item in items if script_of(item)]
            config.hook.pytest_deselected(items=[item for item in items if item not in meant])
            items[:] = meant
            for item in items:
                script = script_of(item)
                details = [detail for marker in item.iter_markers("proves") for detail in marker.args]
                item.user_properties.append(("fork", (str(script.path), script.kind, *details)))
                if purpose := sorted(script.on_purpose & {*details}):
                    item.add_marker(pytest.mark.skip(f"changed on purpose: {', '.join(purpose)}"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        with skip_what_is_not_there(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        with skip_what_is_not_there(item):
            return (yield)

    def pytest_terminal_summary(self, terminalreporter, config):
        if config.getoption("--script"):
            for line in table(terminalreporter.stats, chosen(config)):
                terminalreporter.write_line(line, red="BROKEN" in line)


def table(stats: dict, scripts: list[Script]) -> list[str]:
    """For each script and detail: proven, broken or not testable, and the test to look at or the reason."""
    found = {(str(script.path), script.kind): {} for script in scripts}
    for report in [report for word in ("failed", "error", "passed", "skipped") for report in stats.get(word, [])]:
        for path, kind, *details in [value for name, value in report.user_properties if name == "fork"]:
            test = re.sub(r"@[^\]]*$", "", report.nodeid.split("/")[-1])  # without the name of a group of tests
            test = test.replace(f"[{Path(path).stem}]", "").replace(f"{Path(path).stem}-", "")
            for detail in details:
                found[path, kind].setdefault(detail, []).append((report, test))
    lines = []
    for (path, kind), details in found.items():
        lines += ["", f"{path}: {KINDS[kind][0]}", ""]
        words = []
        for detail in [detail for detail in DETAILS if detail in details]:
            report, test = details[detail][0]  # those that failed come first, then those that passed
            word = {"failed": "BROKEN", "passed": "proven", "skipped": "not testable"}[report.outcome]
            reason = report.longrepr[2].removeprefix("Skipped: ") + f" ({test})" if word == "not testable" else test
            words.append(word)
            lines.append(f"{detail:>11}  {DETAILS[detail]:<50}  {word:<12}  {reason}")
        lines += ["", ", ".join(f"{words.count(word)} {word}" for word in ("proven", "BROKEN", "not testable"))]
    return lines


def documented() -> set[str]:
    """The details that some test claims to prove."""
    tree = ast.parse((TESTS / "test_fork.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "proves"]
    return {argument.value for call in calls for argument in call.args}
