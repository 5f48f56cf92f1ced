"""A Hugging Face cache on disk that already holds what TRL's tests would download: stand-in models and data sets.

Owns the cache's layout, so that with `HF_HOME` at this folder and `HF_HUB_OFFLINE=1` the libraries find everything by
its hub name, as if it had been downloaded before; nothing in them is patched. Knows nothing of pytest or of trainers.

    HF_HOME/hub/models--trl-internal-testing--tiny-…/{refs/main, snapshots/<commit>/…}
    HF_HOME/datasets/trl-internal-testing___zen/<config>/0.0.0/<hash>/…arrow
"""

import codecs
import contextlib
import importlib
import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image as PILImage
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_torchvision_available

from . import models, vocab

ORGANISATION = "trl-internal-testing"
COMMIT = "0" * 40

TRAIN_ROWS, TEST_ROWS = 17, 2  # as on the hub


def build(home: Path) -> None:
    """Makes `home`, some twenty seconds' work, if it is not there: whole, or not at all."""
    if home.exists():
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        _fill(Path(folder) / home.name)
        try:
            (Path(folder) / home.name).rename(home)
        except OSError:  # another process may have been quicker
            if not home.exists():
                raise


def _fill(home: Path) -> None:
    recipes = models.RECIPES | (models.VISION_RECIPES if is_torchvision_available() else {})
    for name, recipe in recipes.items():
        _publish(home, name, partial(models.save, recipe))
    _publish(home, "tiny-RemoteForCausalLM", _save_model_with_its_own_code)
    _publish_dataset(home, "zen", "standard_prompt_only", _text_rows(conversational=False))
    _publish_dataset(home, "zen", "conversational_prompt_only", _text_rows(conversational=True))
    _publish_dataset(home, "zen-image", "conversational_prompt_only", _image_rows(), image=Image())
    _publish_dataset(home, "zen-multi-image", "conversational_prompt_only", _images_rows(), images=List(Image()))


def _publish(home: Path, name: str, save: Callable[[Path], None]) -> None:
    repository = home / "hub" / f"models--{ORGANISATION}--{name}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    save(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


REMOTE_CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM


class RemoteConfig(LlamaConfig):
    model_type = "remote"


class RemoteForCausalLM(LlamaForCausalLM):
    config_class = RemoteConfig
"""


def _save_model_with_its_own_code(folder: Path) -> None:
    """A model whose class is in its own repository, which TRL must refuse to run unless told otherwise."""
    tokenizer = vocab.make_tokenizer(vocab.PLAIN)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **models.SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "remote_model.py").write_text(REMOTE_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "remote", "architectures": ["RemoteForCausalLM"],
        "auto_map": {
            "AutoConfig": "remote_model.RemoteConfig", "AutoModelForCausalLM": "remote_model.RemoteForCausalLM",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


# How many words of each line of `import this` make a prompt; one of TRL's tests knows the first twelve by heart.
WORDS_OF_LINE = (4, 2, 3, 1, 4, 3, 1, 4, 3, 3, 2, 6, 5, 4, 2, 3, 6, 6, 3)


def _prompts() -> list[str]:
    """The openings of the Zen of Python's lines, which is what TRL's data set `zen` holds."""
    with contextlib.redirect_stdout(io.StringIO()):
        this = importlib.import_module("this")
    _title, _blank, *lines = codecs.decode(this.s, "rot13").splitlines()
    return [" ".join(line.split()[:count]).rstrip(".") for line, count in zip(lines, WORDS_OF_LINE, strict=True)]


def _as_messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _text_rows(conversational: bool) -> dict[str, list[Any]]:
    return {"prompt": [_as_messages(text) if conversational else text for text in _prompts()]}


def _image_rows() -> dict[str, list[Any]]:
    rows = _text_rows(conversational=True)
    return rows | {"image": _pictures(len(rows["prompt"]))}


def _images_rows() -> dict[str, list[Any]]:
    """One picture for the first row, two for the next, and so on in turn."""
    rows = _text_rows(conversational=True)
    return rows | {"images": [_pictures(1 + number % 2) for number in range(len(rows["prompt"]))]}


def _pictures(how_many: int) -> list[PILImage.Image]:
    noise = np.random.default_rng(models.SEED)
    shapes = noise.integers(32, 64, size=(how_many, 2))
    return [PILImage.fromarray(noise.integers(0, 256, size=(*shape, 3), dtype=np.uint8)) for shape in shapes]


def _publish_dataset(home: Path, name: str, config: str, rows: dict[str, list[Any]], **images: Any) -> None:
    is_text = isinstance(rows["prompt"][0], str)
    prompt = Value("string") if is_text else List({"role": Value("string"), "content": Value("string")})
    dataset = Dataset.from_dict(rows, features=Features(prompt=prompt, **images))
    parquet = home / "parquet" / name / config
    parquet.mkdir(parents=True)
    splits = {"train": dataset.select(range(TRAIN_ROWS)), "test": dataset.select(range(TRAIN_ROWS, len(dataset)))}
    for split, part in splits.items():
        part.to_parquet(parquet / f"{split}.parquet")
    data_files = {split: str(parquet / f"{split}.parquet") for split in splits}
    builder = Parquet(
        cache_dir=str(home / "built"), dataset_name=name, config_name=config, hash=COMMIT, data_files=data_files
    )  # fmt: skip
    builder.download_and_prepare()
    # A builder names its folder after local files; one that came from the hub is looked up by organisation and config.
    cached = home / "datasets" / f"{ORGANISATION}___{name}" / config / "0.0.0" / COMMIT
    cached.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(cached)
