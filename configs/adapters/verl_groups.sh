#!/usr/bin/env bash
# verl, whole groups: the reward manager names each group by verl's uid, and the server waits for its rollout.n completions.
# Validation has no groups: scorers that compare completions stay out of validation_scorers.
set -eu
python3 -m verl.trainer.main_ppo \
    reward.reward_manager.source=importlib \
    reward.reward_manager.name=RemoteRewardManager \
    reward.reward_manager.module.path=pkg://reward_server.adapters.verl \
    +reward.custom_reward_function.reward_kwargs.endpoint="${REWARD_ENDPOINT:-localhost:50051}" \
    +reward.custom_reward_function.reward_kwargs.columns='{answer: ground_truth}' \
    +reward.custom_reward_function.reward_kwargs.validation_scorers='[correct]' \
    +reward.custom_reward_function.reward_kwargs.timeout_s=600 \
    "$@"
