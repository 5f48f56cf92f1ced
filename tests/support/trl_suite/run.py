"""Runs TRL's own GRPO tests against the installed TRL, offline, with our trainer where they expect TRL's.

    python tests/support/trl_suite/run.py PATH/TO/TRL-CHECKOUT [--trainer remote|stock|both] [pytest arguments]

`remote`, the default, runs all with our trainer, and what failed once more with TRL's: a test is lost if it passes
there. `stock` runs TRL's alone; `both` runs all with each, and also names what only ours passes. Exits 0 if nothing is
lost.

Owns the order of things: the stand-in models, a copy of the checkout's tests apart from its `trl/` (so that the
installed TRL is what runs), one pytest process a trainer, and the comparison. TRL's tests stay in the checkout that is
named: none of them is part of this project.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = "tests/test_grpo_trainer.py"
CACHE = Path(tempfile.gettempdir()) / f"grpo-plugin-trl-suite-{os.getuid()}"

Outcomes = dict[str, list[str]]  # by test id: the outcome in pytest's word, and the first line of why


@dataclass(frozen=True)
class Difference:
    """Tests that pass with TRL's trainer and not with ours, and the other way round, with what the loser said."""

    lost: Outcomes
    gained: Outcomes


def compare(stock: Outcomes, ours: Outcomes) -> Difference:
    """Over the tests of `stock`, which may be fewer than those of `ours`."""
    missing = ["missing", "was not collected"]
    stock_passing, ours_passing = passing(stock), passing(ours)
    return Difference(
        lost={test: ours.get(test, missing) for test in sorted(stock_passing - ours_passing)},
        gained={test: stock[test] for test in sorted(ours_passing - stock_passing) if test in stock},
    )


def passing(outcomes: Outcomes) -> set[str]:
    return {test for test, (outcome, _) in outcomes.items() if outcome in ("passed", "xfailed")}


@dataclass(frozen=True)
class Suite:
    """TRL's GRPO tests in `checkout`, with stand-in models in `cache` (made there on the first run)."""

    checkout: Path
    cache: Path = CACHE

    def run(self, trainer: str, pytest_args: Sequence[str] = (), tests: Sequence[str] = (TESTS,)) -> Outcomes:
        """One pytest process; its output goes to ours. Raises RuntimeError if it ends before it has run the tests."""
        self._build_models()
        with tempfile.TemporaryDirectory(prefix="trl-suite-") as folder:
            work = Path(folder)
            shutil.copytree(self.checkout / "tests", work / "tests")
            shutil.copy(self.checkout / "pyproject.toml", work)
            outcomes = work / "outcomes.json"
            plugins = ["-p", "trl_suite.plugin", "-p", "no:cacheprovider", "-p", "no:asyncio"]
            ours = ["--grpo-trainer", trainer, "--outcomes", str(outcomes)]
            self._python("-m", "pytest", *plugins, *ours, "-rfE", *pytest_args, *tests, cwd=work)
            if not outcomes.exists():
                raise RuntimeError(f"pytest wrote no outcomes for the {trainer} trainer; its own output says why")
            return json.loads(outcomes.read_text())

    def lost(self, pytest_args: Sequence[str] = ()) -> tuple[Outcomes, Difference]:
        """All with our trainer, what failed again with TRL's. Returns our outcomes, and what only TRL's passes."""
        ours = self.run("remote", pytest_args)
        again = [test for test, (outcome, _) in ours.items() if outcome == "failed"]
        return ours, compare(self.run("stock", pytest_args, again) if again else {}, ours)

    def _build_models(self) -> None:
        """In a process of its own, since the libraries read their environment when they are imported."""
        build = "import sys, pathlib; from trl_suite import hub; hub.build(pathlib.Path(sys.argv[1]))"
        if self._python("-c", build, str(self.home)) != 0:
            raise RuntimeError(f"the stand-in models could not be made in {self.home}; the output above says why")

    @property
    def home(self) -> Path:
        """The stand-in models of this code and these libraries; others of the same cache are left alone."""
        made_by = [f"{name} {version(name)}" for name in ("trl", "transformers", "datasets")]
        made_by.append(f"torchvision {importlib.util.find_spec('torchvision') is not None}")
        made_by += [(HERE / name).read_text() for name in ("vocab.py", "models.py", "hub.py")]
        return self.cache / hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:12]

    def _importable(self) -> Path:
        """A folder that has `trl_suite` and nothing else: TRL's tests are a package `tests` too."""
        link = self.cache / f"path-{hashlib.sha256(bytes(HERE)).hexdigest()[:12]}" / HERE.name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(HERE)
        return link.parent

    def _python(self, *arguments: str, cwd: Path | None = None) -> int:
        roots = [str(self._importable()), str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(root for root in roots if root),
            "TOKENIZERS_PARALLELISM": "false",
        }
        return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, check=False).returncode


def _print_counts(name: str, outcomes: Outcomes) -> None:
    counts = Counter(outcome for outcome, _ in outcomes.values())
    print(f"{name}: " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())))


def _print_tests(title: str, outcomes: Outcomes) -> None:
    print(f"{len(outcomes)} {title}")
    for test, (outcome, why) in outcomes.items():
        print(f"  {test}: {outcome}: {why}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of huggingface/trl, best of the installed version")
    parser.add_argument("--trainer", choices=("remote", "stock", "both"), default="remote")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the stand-in models are kept (%(default)s)")
    arguments, pytest_args = parser.parse_known_args()
    if not (arguments.checkout / TESTS).is_file():
        parser.error(f"{arguments.checkout} holds no {TESTS}; name the root of a checkout of huggingface/trl")
    suite = Suite(arguments.checkout, arguments.cache)
    if arguments.trainer == "stock":
        stock = suite.run("stock", pytest_args)
        _print_counts("TRL's trainer", stock)
        return 1 if any(outcome == "failed" for outcome, _ in stock.values()) else 0
    if arguments.trainer == "both":
        stock, ours = suite.run("stock", pytest_args), suite.run("remote", pytest_args)
        difference = compare(stock, ours)
        _print_counts("TRL's trainer", stock)
        _print_tests("pass with ours and not with TRL's", difference.gained)
    else:
        ours, difference = suite.lost(pytest_args)
    _print_counts("our trainer", ours)
    _print_tests("pass with TRL's and not with ours", difference.lost)
    return 1 if difference.lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
