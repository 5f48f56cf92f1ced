"""Files and modules of functions: which version they are, and what is said of one that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward_server.errors import ScorerLoadError
from reward_server.scorers.registry import build, parse_options
from tests.support.builders import make_group
from tests.support.functions import USER_FILE, load_error, loaded, make, write_user_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_user_files(tmp_path)


# ---------------------------------------------------------------------------------------------------------- the version


def test_the_version_changes_with_the_source_and_not_with_the_folder(folder: Path, tmp_path: Path) -> None:
    first = loaded(folder, "length").version
    for name, source in [("same", USER_FILE), ("other", USER_FILE + "\n")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "sibling.py").write_text("")
        (tmp_path / name / "rewards.py").write_text(source)
    assert loaded(tmp_path / "same", "length").version == first
    assert loaded(tmp_path / "other", "length").version != first


def test_a_file_that_changes_is_read_anew_and_what_was_loaded_before_stays_what_it_was(tmp_path: Path) -> None:
    versions, values = [], []
    before = None
    for value in (1, 2):
        (tmp_path / "rewards.py").write_text(f"def f(completions, **_):\n    return [{value}.0] * len(completions)\n")
        scorer = build(parse_options({"type": "function", "name": "f", "function": "rewards.py:f"}, base_dir=tmp_path))
        scorer.load()
        before = before or scorer
        versions.append(scorer.version)
        values.append(scorer.score(make_group(["a"])).scores[0].value)
    assert values == [1.0, 2.0]
    assert len(set(versions)) == 2
    assert before is not None
    assert before.score(make_group(["a"])).scores[0].value == 1.0


def test_a_module_that_changed_since_its_import_is_refused_where_the_version_would_not_be_what_runs(
    tmp_path: Path,
) -> None:
    def load(value: int) -> None:
        (tmp_path / "changing_rewards.py").write_text(f"def f(completions, **_):\n    return [{value}.0]\n")
        options = {"type": "function", "name": "f", "function": "changing_rewards:f"}
        build(parse_options(options, base_dir=tmp_path)).load()

    load(1)
    with pytest.raises(ScorerLoadError, match="has changed since this process imported changing_rewards"):
        load(2)
    load(1)


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_a_file_that_is_not_there_is_named_with_the_folders_looked_in(folder: Path) -> None:
    scorer = build(parse_options({"type": "function", "name": "f", "function": "nope.py:f"}, base_dir=folder))
    assert load_error(scorer).startswith(f"nope.py:f: there is no file 'nope.py' in {folder} or ")


def test_a_module_that_is_not_there_is_named_without_a_traceback(folder: Path) -> None:
    scorer = build(parse_options({"type": "function", "name": "f", "function": "no_such_rewards.x:f"}))
    message = load_error(scorer)
    assert message.startswith("no_such_rewards.x:f: there is no module 'no_such_rewards'")
    assert "Traceback" not in message


def test_an_attribute_that_is_not_there_names_the_nearest(folder: Path) -> None:
    assert load_error(make(folder, "lenght")).endswith("has no attribute 'lenght', did you mean 'length'?")


def test_an_import_that_raises_shows_the_users_traceback_and_only_that(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def helper():\n    return 1 / 0\n\nhelper()\n")
    message = load_error(make(tmp_path, "f"))
    assert message.startswith(f"rewards.py:f: importing {tmp_path / 'rewards.py'} raised\nTraceback")
    assert "line 4, in <module>" in message
    assert "line 2, in helper" in message
    assert message.endswith("ZeroDivisionError: division by zero")
    assert "loading.py" not in message
    assert "importlib" not in message


def test_a_file_that_is_no_python_shows_the_line(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("x = 1\ndef f(:\n")
    assert "line 2" in load_error(make(tmp_path, "f"))


def test_a_file_that_exits_when_imported_does_not_end_the_server(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("import sys\nsys.exit(3)\n")
    assert "SystemExit: 3" in load_error(make(tmp_path, "f"))


def test_what_is_no_function_says_what_it_is(folder: Path) -> None:
    assert "gives 3 of type int, not a function" in load_error(make(folder, "number"))
    assert "if it makes one, set factory: true" in load_error(make(folder, "Judge"))


def test_a_factory_that_raises_names_its_kwargs(folder: Path) -> None:
    message = load_error(make(folder, "make_threshold", factory=True, kwargs={"limmit": 1}))
    assert "the factory raised for kwargs {'limmit': 1}" in message
    assert "TypeError" in message


def test_a_bound_argument_that_the_function_does_not_take_names_the_nearest(folder: Path) -> None:
    assert "takes no argument 'targett', which kwargs gives it, did you mean 'target'?" in load_error(
        make(folder, "narrow", kwargs={"targett": "x"})
    )


def test_a_function_of_live_environments_is_refused(folder: Path) -> None:
    assert "keep it among the trainer's own reward_funcs" in load_error(make(folder, "needs_environments"))
