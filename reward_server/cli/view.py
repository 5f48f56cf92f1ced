"""`reward-server view`: its arguments and what it says. The page is `reward_server.view`'s, which needs Streamlit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from reward_server.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Adds the command to the parser of `reward-server`."""
    parser = commands.add_parser("view", help="show records on a local web page", allow_abbrev=False)
    parser.set_defaults(command=_view)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="RECORDS",
        help="JSONL files, Parquet parts or folders of them, and run folders (a trainer's output_dir)",
    )
    parser.add_argument(
        "--listen", default="127.0.0.1", metavar="HOST", help="address to listen on (127.0.0.1); others need a token"
    )
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="port to listen on (one that is free)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="its first line is asked for before anything")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _view(args: argparse.Namespace) -> int:
    try:
        import streamlit  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError("reward-server view needs Streamlit and DuckDB: pip install 'grpo-plugin[view]'") from error
    from reward_server.view import access, serve  # noqa: PLC0415 - Streamlit takes a second to load
    from reward_server.view.app import Process  # noqa: PLC0415
    from reward_server.view.sources import sources_of  # noqa: PLC0415

    token = access.read_token(args.token_file) if args.token_file else None
    access.check_listen(args.listen, token)
    process = Process(sources_of(args.paths), token)
    if token:
        print("the token of --token-file is asked for, once a session")
    serve.serve(process, args.listen, args.port, lambda url: print(f"on {url}", flush=True))
    return 0
