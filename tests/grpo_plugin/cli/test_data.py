"""Datasets by path, the column mapping, and what is said of data that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from grpo_plugin.cli.data import DataArguments, as_messages, load_splits
from grpo_plugin.errors import UsageError

ROWS = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}", "id": n} for n in range(10)]


@pytest.fixture
def jsonl(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def load(name: str, *, evaluates: bool = False, **options: Any) -> tuple[Dataset, Dataset | None]:
    options.setdefault("columns", {"prompt": "question", "answer": "answer"})
    return load_splits(DataArguments(dataset_name=name, **options), seed=0, evaluates=evaluates)


def test_columns_are_renamed_and_the_others_dropped(jsonl: str) -> None:
    rows, held_out = load(jsonl)
    assert rows[3] == {"prompt": "3 + 3?", "answer": "#### 6"}
    assert held_out is None


def test_columns_may_come_from_the_command_line_as_json(jsonl: str) -> None:
    rows, _ = load(jsonl, columns='{"prompt": "answer", "answer": "question"}')
    assert rows[0] == {"prompt": "#### 0", "answer": "0 + 0?"}


@pytest.mark.parametrize("suffix", ["json", "parquet", "csv"])
def test_other_formats_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"rows.{suffix}", Dataset.from_list(ROWS)
    if suffix == "json":
        path.write_text(json.dumps(ROWS))
    else:
        getattr(rows, f"to_{suffix}")(path)
    assert load(str(path))[0].to_list() == [{"prompt": r["question"], "answer": r["answer"]} for r in ROWS]


def test_a_folder_of_save_to_disk_is_a_dataset(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert len(load(str(tmp_path / "saved"))[0]) == 10


def test_a_system_prompt_makes_prompts_conversational(jsonl: str) -> None:
    rows, _ = load(jsonl, system_prompt="Add.")
    assert rows[1]["prompt"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}]


def test_a_system_prompt_that_is_there_already_stays() -> None:
    messages = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "?"}]
    assert as_messages(messages, "Other.") == messages


def test_rows_held_out_are_not_trained_on(jsonl: str) -> None:
    train, held_out = load(jsonl, evaluates=True, eval_size=0.3)
    assert held_out is not None
    assert (len(train), len(held_out)) == (7, 3)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}


def test_the_first_rows_are_kept_if_a_number_is_given(jsonl: str) -> None:
    assert load(jsonl, max_train_rows=2)[0]["prompt"][:] == ["0 + 0?", "1 + 1?"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"prompt": "q"}}, "columns names 'q', and the data has 'question', 'answer', 'id'"),
        ({"columns": None}, "no column 'prompt'; it has 'question', 'answer', 'id'"),
        ({"columns": {"answer": "answer"}}, "which column is the prompt"),
        ({"columns": "question"}, "must be a mapping"),
        ({"columns": {"prompt": "question", "q": "question"}}, "'question' twice"),
        ({"evaluates": True}, "set eval_size"),
        ({"evaluates": True, "eval_size": 10}, "must leave rows on both sides"),
    ],
)
def test_what_the_data_lacks_is_named_with_the_way_out(jsonl: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(jsonl, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("[]", "has no rows|cannot be loaded"), ("{nonsense", "cannot be loaded")],
)
def test_a_file_without_usable_rows_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        load(str(path))
    assert "rows.json" in str(error.value)


def test_a_path_that_does_not_exist_is_named_with_the_working_folder() -> None:
    with pytest.raises(UsageError, match=r"there is no data/missing.jsonl \(working folder: "):
        load("data/missing.jsonl")
