"""A gRPC service that scores groups of completions, and its client. Importing it loads neither torch nor trl."""

import os

__version__ = "0.1.0"

# gRPC's C++ core logs to standard error what our errors and logs already say (a connection that ended, a server without
# the health service). It reads this variable once, when `grpc` is imported, and logs the second kind as an error, so
# that no level but NONE keeps it out of a user's terminal (grpcio 1.85). GRPC_VERBOSITY=INFO brings the lines back.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
