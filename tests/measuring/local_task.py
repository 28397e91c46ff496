"""A multiple-choice task whose data are a dozen lines in a local file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# Short, for the tiny models have 64 positions; the right choices differ in length.
QUESTIONS: list[dict[str, Any]] = [
    {"question": "a cat", "choices": ["purrs", "barks loudly"], "answer": 0},
    {"question": "a dog", "choices": ["hums", "barks at you"], "answer": 1},
    {"question": "ice is", "choices": ["hot", "cold", "warm as milk"], "answer": 1},
    {"question": "fire", "choices": ["burns all", "rains"], "answer": 0},
    {"question": "one +1", "choices": ["two", "three or so", "ten"], "answer": 0},
    {"question": "the sky", "choices": ["is blue", "sings"], "answer": 0},
    {"question": "night", "choices": ["is dark outside", "glows"], "answer": 0},
    {"question": "fish", "choices": ["fly", "swim in water"], "answer": 1},
    {"question": "birds", "choices": ["fly", "read books a lot"], "answer": 0},
    {"question": "snow", "choices": ["melts in spring", "eats", "runs"], "answer": 0},
    {"question": "rain", "choices": ["falls", "climbs trees"], "answer": 0},
    {"question": "a king", "choices": ["rules the land", "is wet"], "answer": 0},
]


def write_task(
    folder: Path,
    questions: Sequence[dict[str, Any]] = QUESTIONS,
    examples: Sequence[dict[str, Any]] = (),
) -> Path:
    """The task `kinds` in `folder`: its file and its data; `examples` are shown in their order."""
    files = {"test": questions, **({"train": examples} if examples else {})}
    paths = {"test": folder / "rows.jsonl", "train": folder / "examples.jsonl"}
    for split, rows in files.items():
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {
        "task": "kinds",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(paths[split]) for split in files}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1.5},
    }
    if examples:
        task |= {
            "training_split": "train",
            "fewshot_split": "train",
            "fewshot_config": {"sampler": "first_n"},
        }
    (folder / "kinds.yaml").write_text(yaml.safe_dump(task))
    return folder
