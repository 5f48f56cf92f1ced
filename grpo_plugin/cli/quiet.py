"""Keeps what libraries say to their own developers off the terminal of `grpo` commands.

Owns which remarks those are: deprecations inside the libraries of training, and progress bars where nobody sees them
move. A warning about the user's run, model or data is shown, and so is everything where Python was started with -W or
PYTHONWARNINGS.
"""

from __future__ import annotations

import logging
import sys
import warnings

import datasets
import transformers

LIBRARIES = ("accelerate", "datasets", "deepspeed", "huggingface_hub", "peft", "torch", "transformers", "trl")


def hush_libraries() -> None:
    """For a command that trains: call it before data and model are loaded."""
    if not sys.warnoptions:
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"({'|'.join(LIBRARIES)})\b")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # it reports every setting at INFO
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        hush_progress_bars()


def hush_progress_bars() -> None:
    """For the time in which there is one progress bar, ours: transformers has one for each checkpoint it writes."""
    transformers.utils.logging.disable_progress_bar()
