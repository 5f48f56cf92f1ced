#!/usr/bin/env bash
# slime, whole groups. For one sample at a time: reward_server.adapters.slime.reward, and no --group-rm.
set -eu
export REWARD_ENDPOINT="${REWARD_ENDPOINT:-localhost:50051}"
export REWARD_COLUMNS=answer=label
python3 train.py --group-rm --custom-rm-path reward_server.adapters.slime.group_reward "$@"
