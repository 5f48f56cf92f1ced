"""`python -m grpo_plugin.cli`."""

import sys

from grpo_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
