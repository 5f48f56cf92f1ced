#!/usr/bin/env bash
# OpenRLHF: it loads the adapter as a file. Ray hands REWARD_* on to its workers if it is started with them.
set -eu
export REWARD_ENDPOINT="${REWARD_ENDPOINT:-localhost:50051}"
export REWARD_COLUMNS=answer=label
export REWARD_STRIP='<|im_end|>,<|endoftext|>'
adapter=$(python3 -c 'import reward_server.adapters.openrlhf as adapter; print(adapter.__file__)')
python3 -m openrlhf.cli.train_ppo_ray --reward.remote_url "$adapter" "$@"
