"""A gRPC service that scores groups of completions, and its client. Importing it loads neither torch nor trl."""

__version__ = "0.1.0"
