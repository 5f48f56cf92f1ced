"""The registry: which kinds there are, and what is said of an entry that cannot be used."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Scorer
from reward_server.scorers.registry import BUILT_IN, build, known_types, parse_options, scorer_class
from tests.support.builders import make_group

THIRD_PARTY = dedent("""
    from pydantic import Field
    from reward_server.scorers.base import Result, Scorer, ScorerOptions, text_of, to_scores

    class VowelOptions(ScorerOptions):
        vowels: str = Field("aeiou", description="Letters to count.")

    class VowelScorer(Scorer[VowelOptions]):
        Options = VowelOptions

        def score(self, group):
            texts = [text_of(content) for content in group.contents()]
            return Result(to_scores([sum(map(text.count, self.options.vowels)) for text in texts], len(group)))

    def not_a_scorer(completions, **kwargs):
        return [0.0] * len(completions)
""")


def scores_of(scorer: Scorer, completions: list[str]) -> list[float | None]:
    scorer.load()
    return [score.value for score in scorer.score(make_group(completions)).scores]  # type: ignore[union-attr]


def problem_of(**mapping: object) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_options(mapping, where="scorers[2]")
    return str(raised.value)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip installs it: a module and a dist-info folder that names its entry point."""
    (tmp_path / "vowel_rewards.py").write_text(THIRD_PARTY)
    info = tmp_path / "vowel_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vowel-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[reward_server.scorers]\n"
        "vowels = vowel_rewards:VowelScorer\nbroken = vowel_missing:Scorer\nmath = vowel_rewards:VowelScorer\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("vowel_rewards", None)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_type_is_a_scorer(name: str) -> None:
    assert issubclass(scorer_class(name), Scorer)


def test_looking_up_every_built_in_type_loads_neither_torch_nor_transformers_nor_math_verify() -> None:
    code = (
        "import sys\nfrom reward_server.scorers.registry import BUILT_IN, scorer_class\n"
        "[scorer_class(name) for name in BUILT_IN]\n"
        "print(sorted({'torch', 'transformers', 'trl', 'math_verify', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_an_installed_package_adds_a_type_by_entry_point(third_party: Path) -> None:
    assert "vowels" in known_types()
    scorer = build(parse_options({"type": "vowels", "name": "v", "vowels": "a"}))
    assert scores_of(scorer, ["banana", "sky"]) == [3.0, 0.0]


def test_an_entry_point_cannot_take_a_built_in_name(third_party: Path) -> None:
    assert scorer_class("math").__module__ == "reward_server.scorers.math"


def test_an_entry_point_that_does_not_import_says_which_and_why(third_party: Path) -> None:
    with pytest.raises(ScorerLoadError, match=r"(?s)'broken': loading vowel_missing:Scorer .*ModuleNotFound"):
        scorer_class("broken")


def test_a_class_enters_by_module_and_attribute(third_party: Path) -> None:
    assert scores_of(build(parse_options({"type": "vowel_rewards:VowelScorer", "name": "v"})), ["aeon"]) == [3.0]


def test_a_class_enters_by_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(THIRD_PARTY)
    options = parse_options({"type": "mine.py:VowelScorer", "name": "v"}, base_dir=tmp_path)
    assert scores_of(build(options), ["aeon"]) == [3.0]


def test_options_of_a_class_from_a_file_reach_a_process_that_has_not_imported_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(THIRD_PARTY)
    options = parse_options({"type": "mine.py:VowelScorer", "name": "v", "weight": 2}, base_dir=tmp_path)
    code = (
        "import pickle, sys\nfrom reward_server.scorers.registry import build\n"
        "options = pickle.load(sys.stdin.buffer)\n"
        "print(build(options).options.vowels, options.weight, options.base_dir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(options), capture_output=True, timeout=60, check=True
    )
    assert done.stdout.decode().split() == ["aeiou", "2.0", str(tmp_path)]


def test_options_are_json_and_do_not_tell_where_their_file_lies(tmp_path: Path) -> None:
    mapping = {"type": "function", "name": "f", "function": "rewards.py:f", "kwargs": {"a": [1, None]}}
    options = parse_options(mapping, base_dir=tmp_path)
    assert str(tmp_path) not in json.dumps(options.model_dump(mode="json"))
    assert pickle.loads(pickle.dumps(options)) == options


def test_an_unknown_type_lists_the_known_ones_and_the_nearest() -> None:
    message = problem_of(type="maths", name="m")
    assert message.startswith("scorers[2].type: there is no scorer type 'maths', did you mean 'math'?")
    assert "function, group_function, classifier" in message


def test_a_missing_type_says_so() -> None:
    assert problem_of(name="m").startswith("scorers[2].type is missing; set it to one of function,")


def test_an_entry_that_is_no_mapping_says_so() -> None:
    with pytest.raises(ConfigError, match=r"scorers\[0\] must be a mapping with type and name, not 'math'"):
        parse_options("math")


def test_a_function_in_place_of_a_class_says_how_to_write_it(third_party: Path) -> None:
    message = problem_of(type="vowel_rewards:not_a_scorer", name="v")
    assert "not a subclass of reward_server.scorers.base.Scorer" in message
    assert "write `type: function` and `function: vowel_rewards:not_a_scorer`" in message


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    message = problem_of(type="math", name="m", colum="answer")
    assert message.startswith("scorers[2].colum = 'answer': unknown key, did you mean 'column'? known keys: type, name")


def test_a_wrong_value_is_named_with_its_field_and_what_the_field_means() -> None:
    message = problem_of(type="math", name="m", weight="heavy")
    assert message.startswith("scorers[2].weight: input should be a valid number")
    assert "'heavy' is not; Weight of this scorer's score" in message


def test_every_wrong_field_has_a_line() -> None:
    message = problem_of(type="math", weight=float("nan"), timeout_s=0)
    assert [line.split(":")[0].split(" ")[0] for line in message.splitlines()] == [
        "scorers[2].name",
        "scorers[2].weight",
        "scorers[2].timeout_s",
    ]


def test_a_missing_name_says_what_a_name_is_for() -> None:
    assert (
        problem_of(type="math")
        == "scorers[2].name is missing; Name of the scorer in metrics and weights; unique on the server."
    )


def test_a_function_of_another_form_is_refused_before_anything_is_imported() -> None:
    message = problem_of(type="function", name="f", function="my_rewards.accuracy")
    assert message == (
        "scorers[2].function: 'my_rewards.accuracy' must have the form module:attribute or path/to/file.py:attribute"
    )


def test_building_is_cheap_and_imports_no_user_code(tmp_path: Path) -> None:
    (tmp_path / "boom.py").write_text("raise RuntimeError('imported')")
    scorer = build(parse_options({"type": "function", "name": "f", "function": "boom.py:f"}, base_dir=tmp_path))
    assert scorer.place is ExecutorKind.WORKER
    with pytest.raises(ScorerLoadError, match="imported"):
        scorer.load()
