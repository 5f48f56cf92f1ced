#!/usr/bin/env bash
# ms-swift: the plugin registers the rewards of the server as `remote`. The data set's column `solution` is the answer.
set -eu
export REWARD_ENDPOINT="${REWARD_ENDPOINT:-localhost:50051}"
export REWARD_COLUMNS=answer=solution
swift rlhf --rlhf_type grpo --reward_funcs remote \
    --external_plugins "$(dirname "$0")/ms_swift_plugin.py" "$@"
