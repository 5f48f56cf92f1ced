#!/usr/bin/env bash
# verl, one completion at a time: for scorers that do not compare completions. More of verl's options follow as arguments.
set -eu
python3 -m verl.trainer.main_ppo \
    reward.custom_reward_function.path=pkg://reward_server.adapters.verl \
    reward.custom_reward_function.name=compute_score \
    +reward.custom_reward_function.reward_kwargs.endpoint="${REWARD_ENDPOINT:-localhost:50051}" \
    +reward.custom_reward_function.reward_kwargs.columns='{answer: ground_truth}' \
    "$@"
