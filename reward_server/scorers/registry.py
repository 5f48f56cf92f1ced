"""The registry of scorer types: built-in names, entry points, and "module:attribute".

Owns the lookup from `type` to a class, from a mapping to options, and from options to a scorer. Knows scorers by name
only: a built-in type is imported when it is first used, so a server without classifiers never loads torch.

    options = parse_options({"type": "math", "name": "correct"}, where="scorers[0]")
    scorer = build(options)      # cheap
    scorer.load()                # where it will run: imports, models
"""

from __future__ import annotations

import copyreg
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.scorers.base import Scorer, ScorerOptions
from reward_server.scorers.loading import did_you_mean, load_attribute, user_traceback

ENTRY_POINT_GROUP = "reward_server.scorers"

BUILT_IN = {
    "function": "reward_server.scorers.functions:FunctionScorer",
    "group_function": "reward_server.scorers.functions:GroupFunctionScorer",
    "classifier": "reward_server.scorers.classifier:ClassifierScorer",
    "token_probability": "reward_server.scorers.token_probability:TokenProbabilityScorer",
    "endpoint": "reward_server.scorers.endpoint:EndpointScorer",
    "judge": "reward_server.scorers.judge:JudgeScorer",
    "math": "reward_server.scorers.math:MathScorer",
    "code": "reward_server.scorers.code:CodeScorer",
    "length": "reward_server.scorers.lengths:LengthScorer",
    "soft_overlong": "reward_server.scorers.lengths:SoftOverlongScorer",
    "length_budget": "reward_server.scorers.lengths:LengthBudgetScorer",
    "regex": "reward_server.scorers.heuristics:RegexScorer",
    "match": "reward_server.scorers.heuristics:MatchScorer",
    "keywords": "reward_server.scorers.heuristics:KeywordsScorer",
    "repetition": "reward_server.scorers.heuristics:RepetitionScorer",
    "relevance": "reward_server.scorers.relevance:RelevanceScorer",
    "composite": "reward_server.scorers.composite:CompositeScorer",
}


def known_types() -> list[str]:
    """Every name that `type` may have, the built-in ones first."""
    return list(dict.fromkeys([*BUILT_IN, *_entry_points()]))


def scorer_class(type_name: str, base_dir: Path | None = None) -> type[Scorer]:
    """The class of a kind.

    Raises ConfigError for an unknown name or an object that is no Scorer, and ScorerLoadError (with the traceback) for
    one whose import fails. An entry point cannot replace a built-in name.
    """
    if type_name in BUILT_IN:
        module, _, attribute = BUILT_IN[type_name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ":" in type_name:
        return _checked(load_attribute(type_name, base_dir or Path()), type_name)
    if (entry_point := _entry_points().get(type_name)) is not None:
        return _checked(_load(entry_point), type_name)
    known = known_types()
    hint = did_you_mean(type_name, known) or ";"
    raise ConfigError(
        f"there is no scorer type {type_name!r}{hint} known types: {', '.join(known)}; "
        "a class of your own is named as module:attribute or path/to/file.py:attribute"
    )


def parse_options(mapping: Any, where: str = "scorers[0]", base_dir: Path | str | None = None) -> ScorerOptions:
    """The options of one scorer, validated, from what its configuration says.

    `where` begins every message. `base_dir` is the configuration file's folder. The options can be pickled, also for a
    process that has not imported their class, and written as JSON. Raises ConfigError.
    """
    folder = Path(base_dir or "").resolve()
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where} must be a mapping with type and name, not {mapping!r:.80}")
    if not isinstance(type_name := mapping.get("type"), str):
        given = f"must be text, not {type_name!r}" if "type" in mapping else "is missing"
        raise ConfigError(f"{where}.type {given}; set it to one of {', '.join(known_types())}, or to module:attribute")
    try:
        options_class = scorer_class(type_name, folder).Options
    except ConfigError as error:
        raise ConfigError(f"{where}.type: {error}") from error
    try:
        options = options_class.model_validate(dict(mapping), context={"base_dir": str(folder)})
    except ValidationError as error:
        raise ConfigError(explain(error, options_class, where)) from error
    copyreg.pickle(options_class, _pickled)
    return options


def build(options: ScorerOptions) -> Scorer:
    """The scorer of these options, not yet loaded."""
    return scorer_class(options.type, options.base_dir)(options)


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """What pydantic found wrong, one line for each field: its path, its value and the way out."""
    return "\n".join(_explain(dict(detail), model, where) for detail in error.errors(include_url=False))


def _explain(detail: Mapping[str, Any], model: type[BaseModel], where: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            fields = [name for name in model.model_fields if len(detail["loc"]) == 1]
            hint = did_you_mean(str(detail["loc"][-1]), fields)
            known = f"known keys: {', '.join(fields)}" if fields else "remove it"
            return f"{where}{path} = {detail['input']!r:.80}: unknown key{hint or ';'} {known}"
        case "missing":
            return f"{where}{path} is missing; {_help(model, detail)}"
        case "value_error":
            return f"{where}{path}: {detail['ctx']['error']}"
        case _:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            return f"{where}{path}: {message}, and {detail['input']!r:.80} is not; {_help(model, detail)}"


def _help(model: type[BaseModel], detail: Mapping[str, Any]) -> str:
    field = model.model_fields.get(str(detail["loc"][0])) if detail["loc"] else None
    return (field.description if field is not None else None) or "set it"


def _pickled(options: ScorerOptions) -> tuple[Any, ...]:
    """As the mapping that they were parsed from: a class from a file cannot be imported by its module's name."""
    return parse_options, (options.model_dump(exclude_unset=True), f"scorer {options.name!r}", str(options.base_dir))


def _entry_points() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(entry_point: EntryPoint) -> Any:
    try:
        return entry_point.load()
    except (Exception, SystemExit) as error:
        raise ScorerLoadError(
            f"scorer type {entry_point.name!r}: loading {entry_point.value} raised\n{user_traceback(error)}"
        ) from error


def _checked(found: Any, type_name: str) -> type[Scorer]:
    if isinstance(found, type) and issubclass(found, Scorer):
        return found
    hint = f"for a reward function write `type: function` and `function: {type_name}`" if callable(found) else ""
    raise ConfigError(f"{type_name!r} is {found!r:.80}, not a subclass of reward_server.scorers.base.Scorer; {hint}")
