"""What these trainers lean on in the installed TRL, what of it has moved, and what is switched off then.

Owns the table of TRL's parts, each with the features that need it. TRL's internals are no interface: a release may move
them. A feature that is exact only while a part is where it was is then off, with a warning, and where rewards would be
wrong, training is refused. Nothing is guessed. Reads TRL's source, and changes only settings.

The parts are those of TRL 1.16; 1.13 and 1.14 have them too.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import trl

from grpo_plugin.batching.rows import FIELDS
from grpo_plugin.config import setting
from grpo_plugin.rewards.survivors import KNOWN_LOSSES
from reward_server.errors import ConfigError

# The features. The first cannot be switched off, and the next three are refused; the others can be.
TRAINER, SERVICE, DROPS, KL_ANCHOR = "the trainer", "a reward service", "on_reward_failure", "kl_anchor"
TOKEN_BATCHES, SCORE_AHEAD, RECORDS = "token_batches", "score_ahead", "record_rewards"
DYNAMIC = "dynamic_sampling"

_OFF = {TOKEN_BATCHES: False, SCORE_AHEAD: 0, RECORDS: None, DYNAMIC: False}


@dataclass(frozen=True, slots=True)
class Part:
    """Something of TRL's GRPOTrainer: what it is, which features need it, and whether a class of TRL's has it."""

    name: str
    needed_by: Collection[str]
    is_there: Callable[[type], bool]


def moved(trainer: type) -> dict[str, list[str]]:
    """The parts that a GRPOTrainer does not have, by the feature that needs them. Empty for a TRL that fits."""
    found: dict[str, list[str]] = {}
    for part in PARTS:
        if not _is_there(part, trainer):
            for feature in part.needed_by:
                found.setdefault(feature, []).append(part.name)
    return found


def fit(args: Any, missing: dict[str, list[str]]) -> list[str]:
    """Switches off the settings whose parts are missing, and returns a sentence for each, to warn with.

    Raises ConfigError where that cannot be: the trainer itself, rewards of a service, dropped completions, the anchor.
    `missing` is what `moved` found.
    """
    for feature, remedy in _refused(args).items():
        if feature in missing:
            raise ConfigError(f"{_sentence(missing[feature])}, on which {feature} rests: {remedy}")
    told = []
    for feature, off in _OFF.items():
        if feature in missing and setting(args, feature) != off:
            setattr(args, feature, off)
            told.append(f"{_sentence(missing[feature])}: {feature} is off")
    if setting(args, TOKEN_BATCHES) and args.loss_type not in KNOWN_LOSSES:
        args.token_batches = False
        told.append(
            f"loss_type {args.loss_type!r} is not one of {', '.join(sorted(KNOWN_LOSSES))}: token_batches is off"
        )
    return told


def _refused(args: Any) -> dict[str, str]:
    """What these arguments ask for that can only be refused, with the way out."""
    install = "install another release of TRL (1.16 fits), or a newer grpo-plugin"
    asked = {TRAINER: install}
    if setting(args, "reward_endpoint") or setting(args, "reward_config"):
        asked[SERVICE] = install
        if setting(args, "on_reward_failure") != "raise":
            asked[DROPS] = f"set on_reward_failure to 'raise', or {install}"
    if setting(args, "kl_anchor") != "reference":
        asked[KL_ANCHOR] = f"set kl_anchor to 'reference', or {install}"
    return asked


def _sentence(parts: Collection[str]) -> str:
    return f"TRL {trl.__version__} has moved {'; '.join(parts)}"


def _is_there(part: Part, trainer: type) -> bool:
    try:
        return part.is_there(trainer)
    except (AttributeError, OSError, SyntaxError, TypeError, ValueError):  # no such method, or no source of it
        return False


# ------------------------------------------------------------------------------------------------------- how to look


@functools.lru_cache(maxsize=64)
def _tree(function: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


@functools.lru_cache(maxsize=64)
def _code(function: Any) -> str:
    """The source of a function without comments, in one form whatever its layout."""
    return ast.unparse(_tree(function))


def _takes(method: str, *parameters: str) -> Part:
    """A method that is overridden: it takes these parameters and no others."""

    def is_there(trainer: type) -> bool:
        return list(inspect.signature(getattr(trainer, method)).parameters) == ["self", *parameters]

    return Part(f"the parameters of {method}", (TRAINER,), is_there)


def _has(method: str, needed_by: Collection[str], what: str, *lines: str) -> Part:
    """Lines in the source of a method; each is Python, as `ast.unparse` writes it."""
    return Part(what, needed_by, lambda trainer: all(line in _code(getattr(trainer, method)) for line in lines))


def _assigns(needed_by: Collection[str], *names: str) -> Part:
    """Attributes that the constructor assigns."""

    def is_there(trainer: type) -> bool:
        nodes = ast.walk(_tree(trainer.__init__))  # type: ignore[misc]
        stored = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        return stored.issuperset(names)

    return Part(f"one of the attributes {', '.join(names)}", needed_by, is_there)


def _generates_before_it_asks_for_rewards(trainer: Any) -> bool:
    code = _code(trainer._generate_and_score_completions)
    methods = ("_generate", "_get_per_token_logps_and_entropies", "_calculate_rewards")
    places = [code.index(f"self.{method}(") for method in methods]
    return places == sorted(places)


def _is_asked_for_log_probs_as_we_ask(trainer: Any) -> bool:
    own = inspect.signature(trainer._get_per_token_logps_and_entropies)
    own.bind(None, None, None, None, None, batch_size=1, compute_entropy=True, compute_aux_loss=False)
    first = [name for name in own.parameters if name not in ("args", "kwargs")][:5]
    return first[:2] == ["self", "model"] and first[2:] in (
        ["input_ids", "attention_mask", "logits_to_keep"],
        ["batch_size", "compute_aux_loss"],  # TRL 1.14, which hands on the rest
    )


def _has_known_fields(trainer: Any) -> bool:
    """Whether TRL's batches hold what we need, and beside it only what `batching.rows` knows or images bring."""
    nodes = list(ast.walk(_tree(trainer._generate_and_score_completions)))
    made = [n.value for n in nodes if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "output"]
    always = {ast.literal_eval(key) for d in made if isinstance(d, ast.Dict) for key in d.keys if key is not None}
    stored = [node for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)]
    sometimes = {ast.literal_eval(node.slice) for node in stored if ast.unparse(node.value) == "output"}
    return always == BATCH_FIELDS and sometimes <= {*FIELDS, *IMAGE_FIELDS}


def _widens_num_iterations_alone(trainer: Any) -> bool:
    """Whether old log-probabilities are computed where a generation outlasts a step, and nothing else asks for it."""
    code = _code(trainer._generate_and_score_completions)
    every = "generate_every = self.args.steps_per_generation * self.num_iterations"
    rule = "if self.args.gradient_accumulation_steps % generate_every != 0"
    return every in code and rule in code and code.count("num_iterations") == 1


BATCH_FIELDS = {
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"),
    *("advantages", "num_items_in_batch"),
}
# What batches with images have beside: those go TRL's way.
IMAGE_FIELDS = (
    *("pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "token_type_ids"),
    *("mm_token_type_ids", "image_position_ids", "num_images", "num_tiles"),
)

PARTS = (
    _takes("_generate", "prompts"),
    _takes("_generate_and_score_completions", "inputs"),
    _takes("_calculate_rewards", "inputs", "prompts", "completions", "completion_ids_list"),
    _takes("_prepare_inputs", "generation_batch"),
    _takes("training_step", "model", "inputs", "num_items_in_batch"),
    _takes("compute_loss", "model", "inputs", "return_outputs", "num_items_in_batch"),
    _takes("_compute_loss", "model", "inputs"),
    _takes("get_batch_samples", "epoch_iterator", "num_batches", "device"),
    _takes("_load_optimizer_and_scheduler", "checkpoint"),
    Part("what log-probabilities are asked with", (TRAINER,), _is_asked_for_log_probs_as_we_ask),
    Part(
        "the order of generation, log-probabilities and rewards",
        (SERVICE, SCORE_AHEAD, DYNAMIC),
        _generates_before_it_asks_for_rewards,
    ),
    _has(
        "_generate",
        (SERVICE, SCORE_AHEAD, RECORDS, DYNAMIC),
        "what _generate returns",
        "return (prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images)",
    ),
    _has(
        "_calculate_rewards",
        (SERVICE, TOKEN_BATCHES, DYNAMIC),
        "the rewards of all ranks, a column a function",
        "rewards_per_func = gather(rewards_per_func)",
        "return rewards_per_func",
    ),
    _has(
        "_generate_and_score_completions",
        (DROPS,),
        "the mean and the deviation of a group without the rows that have no reward",
        "torch.isnan(rewards_per_func).all(dim=1)",
        "torch.nanmean(rewards.view(-1, num_generations), dim=1)",
        "nanstd(rewards.view(-1, num_generations), dim=1)",
    ),
    _has(
        "_prepare_inputs",
        (DROPS, TOKEN_BATCHES),
        "the micro-batches of a generation",
        "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]",
    ),
    _has(
        "training_step",
        (TOKEN_BATCHES,),
        "the accounts of a step",
        "self._step += 1",
        "self._current_train_step_time += time_after - time_before",
    ),
    Part("the fields of a batch", (DROPS, TOKEN_BATCHES), _has_known_fields),
    _has(
        "_generate_and_score_completions",
        (DROPS, TOKEN_BATCHES, RECORDS),
        "the table of completions",
        "self._logs['advantages'].extend(",
        "self._metrics[mode]['frac_reward_zero_std'].append(",
    ),
    Part("when old log-probabilities are computed", (SCORE_AHEAD, DYNAMIC), _widens_num_iterations_alone),
    _has("__init__", (KL_ANCHOR,), "when no reference model is made", "if self.beta == 0.0:"),
    _assigns(
        (SERVICE, DROPS, DYNAMIC), "_metrics", "_pending_metrics", "_pending_extra_logs", "reward_weights", "_step"
    ),
    _assigns((TOKEN_BATCHES, DROPS), "loss_type", "num_iterations", "multi_objective_aggregation", "scale_rewards"),
    _assigns((TOKEN_BATCHES,), "importance_sampling_level", "vllm_importance_sampling_mode", "pad_to_multiple_of"),
    _assigns((TOKEN_BATCHES,), "top_entropy_quantile", "_entropy_bonus_enabled", "aux_loss_enabled"),
)
