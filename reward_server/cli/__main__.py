"""`python -m reward_server.cli`."""

import sys

from reward_server.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
