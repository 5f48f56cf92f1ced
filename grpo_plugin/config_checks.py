"""Whether the settings of a configuration fit together: errors that name the value and the way out.

Owns the checks of RemoteGRPOConfig. Changes nothing, and needs neither data nor model nor service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl import GRPOConfig

from grpo_plugin.rewards.policies import policy_of
from grpo_plugin.rewards.recording import share_of
from grpo_plugin.sampling.group_filters import filter_of

if TYPE_CHECKING:
    from grpo_plugin.config import RemoteGRPOConfig

AUTO = "auto"
MOST_OVERSAMPLE = 8.0
KL_ANCHORS = ("reference", "old")


def explained(config: GRPOConfig, error: ValueError) -> ValueError:
    """TRL's error, with the way out where we know it."""
    batch, generations = config.generation_batch_size, config.num_generations
    if batch and generations and batch % generations:
        fitting = [number for number in range(2, batch + 1) if batch % number == 0]
        return ValueError(
            f"num_generations ({generations}) must divide the generation batch ({batch} = "
            f"per_device_train_batch_size × processes × steps_per_generation); set it to one of {fitting}, or "
            "change per_device_train_batch_size or gradient_accumulation_steps"
        )
    return error


def check(config: RemoteGRPOConfig) -> None:
    """Raises ValueError (ConfigError for a policy or a share) for the first setting that is wrong."""
    if config.reward_endpoint and config.reward_config:
        raise ValueError(
            f"reward_endpoint ({', '.join(config.reward_endpoint)}) and reward_config ({config.reward_config}) exclude "
            "each other: the first names a running service, the second starts one; set one of them"
        )
    _check_tls(config)
    for name in ("reward_timeout_s", "reward_connect_timeout_s"):
        if not 0 < getattr(config, name) < float("inf"):
            raise ValueError(f"{name} must be a positive number of seconds, not {getattr(config, name)}")
    if config.world_size > 1 and config.reward_timeout_s >= config.ddp_timeout:
        raise ValueError(
            f"reward_timeout_s ({config.reward_timeout_s:g}) would outlast the process group's own time-out, "
            f"ddp_timeout ({config.ddp_timeout}): lower the first or raise the second"
        )
    policy_of(config.on_reward_failure)
    share_of(config.record_rewards)
    for name, least in (("min_group_size", 2), ("failure_window", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, not {getattr(config, name)}")
    if not 0 <= config.max_failure_rate <= 1:
        raise ValueError(f"max_failure_rate is a share between 0 and 1, not {config.max_failure_rate}")
    _check_step(config)
    _check_difficulty(config)
    _check_sampling(config)
    if config.kl_anchor not in KL_ANCHORS:
        raise ValueError(f"kl_anchor must be one of {', '.join(KL_ANCHORS)}, not {config.kl_anchor!r}")
    if config.kl_anchor == "old" and config.beta == 0.0:
        raise ValueError("kl_anchor='old' does nothing while beta is 0.0: set beta, or leave kl_anchor out")
    if config.kl_anchor == "old" and config.sync_ref_model:
        raise ValueError("sync_ref_model needs a reference model, and kl_anchor='old' has none: drop one of them")


def _check_step(config: RemoteGRPOConfig) -> None:
    most = config.max_tokens_per_micro_batch
    if not (most in (None, AUTO) or (isinstance(most, int) and most >= 1)):
        raise ValueError(
            f"max_tokens_per_micro_batch must be a number of at least 1, or '{AUTO}', not {most!r}; leave it out for "
            "what stock TRL's micro-batches take"
        )
    if config.score_ahead not in (0, 1):
        raise ValueError(f"score_ahead is a number of batches, 0 or 1, not {config.score_ahead}")
    if config.score_ahead and not (config.reward_endpoint or config.reward_config):
        raise ValueError(
            "score_ahead generates while a service scores: name one by reward_endpoint or reward_config, or set it to 0"
        )


def _check_tls(config: RemoteGRPOConfig) -> None:
    given = [name for name in ("reward_tls_ca", "reward_tls_cert", "reward_tls_key") if getattr(config, name)]
    if given and config.reward_config:
        raise ValueError(f"{', '.join(given)}: the embedded service is reached by a unix socket, without TLS")
    if bool(config.reward_tls_cert) != bool(config.reward_tls_key):
        raise ValueError("reward_tls_cert and reward_tls_key go together: give both, or neither")


def _check_difficulty(config: RemoteGRPOConfig) -> None:
    band = config.difficulty_band
    if band is not None and (len(band) != 2 or not band[0] <= band[1]):
        raise ValueError(f"difficulty_band is two pass shares, the lower one first, such as 0.1 0.9; not {band}")
    if not 0 < config.difficulty_weight < 1:
        raise ValueError(f"difficulty_weight is between 0 and 1, not {config.difficulty_weight}")
    if config.difficulty_visits < 1:
        raise ValueError(f"difficulty_visits must be at least 1, not {config.difficulty_visits}")


def _check_sampling(config: RemoteGRPOConfig) -> None:
    if config.max_sampling_rounds < 1:
        raise ValueError(f"max_sampling_rounds must be at least 1, not {config.max_sampling_rounds}")
    if not 1 <= config.oversample <= MOST_OVERSAMPLE:
        raise ValueError(f"oversample is between 1.0 (off) and {MOST_OVERSAMPLE:g}, not {config.oversample}")
    if config.max_group_age < 0:
        raise ValueError(f"max_group_age is a number of optimizer steps, 0 for none, not {config.max_group_age}")
    filter_of(config.group_filter, config.pass_rate, config.pass_rate_scorer)
    if config.pass_rate is not None and config.group_filter != "pass_rate":
        raise ValueError(f"pass_rate belongs to group_filter 'pass_rate', and group_filter is {config.group_filter!r}")
    if config.dynamic_sampling:
        return
    for name in ("oversample", "group_filter", "max_sampling_rounds", "max_group_age"):
        value = getattr(config, name)
        if value != type(config).__dataclass_fields__[name].default:
            raise ValueError(
                f"{name} ({value}) does nothing without dynamic_sampling: set that to true, or leave it out"
            )
