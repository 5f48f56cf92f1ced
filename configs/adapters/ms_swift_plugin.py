"""swift rlhf --rlhf_type grpo --external_plugins ms_swift_plugin.py --reward_funcs remote …

The settings come from the environment (REWARD_ENDPOINT, …), or are arguments of `register`.
"""

from reward_server.adapters import ms_swift

ms_swift.register("remote")
