"""A pytest plugin for TRL's own tests: puts our trainer where they expect TRL's, and writes down how each test ended.

Owns the names in `trl` that are exchanged, before any test module imports them, and what evens out a checkout of
another version than the installed TRL. Knows nothing of the stand-in models: `run.py` prepares those and sets the
environment.

    pytest -p trl_suite.plugin --grpo-trainer remote --outcomes FILE tests/test_grpo_trainer.py
"""

import functools
import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from transformers.utils import is_torchvision_available
from trl import chat_template_utils, import_utils, trainer
from trl.trainer.base_config import _BaseConfig

TRAINERS = ("stock", "remote")
# What counts the batches of three whole epochs; every other test trains for as long as it is given rows.
NEED_ALL_ROWS = ("test_prepare_input_called_with_correct_data",)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trl suite")
    group.addoption("--grpo-trainer", choices=TRAINERS, default="stock", help="what `trl.GRPOTrainer` is to be")
    group.addoption("--rows", type=int, default=3, help="rows of each data set that tests train on; 0 for all 17")
    group.addoption("--outcomes", type=Path, help="where to write {test id: [outcome, first line of why]} as JSON")


def pytest_configure(config: pytest.Config) -> None:
    _even_out_versions()
    if config.getoption("--grpo-trainer") == "remote":
        _exchange()
    if config.getoption("--rows"):
        _shorten_datasets(config.getoption("--rows"))
    if not torch.accelerator.is_available():
        _default_to_float32()
    if config.getoption("--outcomes"):
        config.pluginmanager.register(Outcomes(config.getoption("--outcomes")), "trl-suite-outcomes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_torchvision_available():
        return
    skip = pytest.mark.skip(reason="models that see need torchvision, which is not installed")
    for item in items:
        if "VLM" in item.nodeid:
            item.add_marker(skip)


def pytest_report_header(config: pytest.Config) -> str:
    used = trl.GRPOTrainer
    return f"trl {trl.__version__} at {Path(trl.__file__).parent}; GRPOTrainer is {used.__module__}.{used.__name__}"


def _exchange() -> None:
    """Every public door to the class; the definition's own module keeps its name, since ours is built on it."""
    ours = importlib.import_module("grpo_plugin").RemoteGRPOTrainer  # not for a run of TRL's trainer alone
    for module in (trl, trainer):
        module.GRPOTrainer = ours


def _default_to_float32() -> None:
    """TRL trains in bfloat16 unless told otherwise, which a CPU without instructions for it does fifty times slower
    than float32. A test that asks for bfloat16 still has it."""
    with_bfloat16 = _BaseConfig.__post_init__

    def with_float32(self: _BaseConfig) -> None:
        self.bf16 = bool(self.bf16)
        with_bfloat16(self)

    _BaseConfig.__post_init__ = with_float32


def _shorten_datasets(rows: int) -> None:
    """Keeps the first rows of what `load_dataset` returns. Three make 9 optimizer steps, where all 17 make 51: enough
    to move every parameter, and too few for a log at the tenth, so that the last log holds what the tests read."""
    whole = datasets.load_dataset

    @functools.wraps(whole)
    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        loaded = whole(*args, **kwargs)
        if any(test in os.environ.get("PYTEST_CURRENT_TEST", "") for test in NEED_ALL_ROWS):
            return loaded
        if isinstance(loaded, dict):
            return type(loaded)({split: part.take(rows) for split, part in loaded.items()})
        return loaded.take(rows)

    datasets.load_dataset = load_dataset


def _even_out_versions() -> None:
    import_utils.__getattr__ = _is_package_available
    # TRL needs jmespath for tools only where transformers is older than 5.13; its tests of tools still ask for it.
    if chat_template_utils._SUPPORTS_RESPONSE_TEMPLATE:
        import_utils.is_jmespath_available = lambda: True
    # The tests make some trainers without `__init__`, by hand, and know no attribute that is newer than they are.
    trl.GRPOTrainer.eos_token_ids = (2,)


def _is_package_available(name: str) -> Callable[[], bool]:
    """Answers for `is_joblib_available` and its like, which come and go between TRL's versions, when TRL itself does
    not."""
    package = name.removeprefix("is_").removesuffix("_available")
    if name != f"is_{package}_available":
        raise AttributeError(f"module 'trl.import_utils' has no attribute {name!r}")
    return lambda: importlib.util.find_spec(package) is not None


class Outcomes:
    """Collects one outcome a test: the worst of set-up, call and tear-down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_test: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        outcome = "xfailed" if report.skipped and hasattr(report, "wasxfail") else report.outcome
        self.by_test[report.nodeid] = [outcome, _why(report)]

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.by_test, indent=1))


def _why(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return report.longrepr[2].splitlines()[0]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).splitlines()[0]
