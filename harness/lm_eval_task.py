"""Canaries as tasks of EleutherAI's lm-evaluation-harness, which runs them on any Hugging Face model.

A directory gets, for each canary, ``NAME.yaml`` and ``NAME.jsonl`` with one document a probe, and a group of them all.
That program encodes context and choice together and splits at the length of the context. So an export proves of every
text that this gives the ids which are scored here, and writes nothing when it does not.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from harness import lm_eval_items
from harness.errors import HarnessError
from harness.forced_choice import Canary, Probe
from harness.hashing import sha256_json

PREFIX = "groundthink_"
GROUP = f"{PREFIX}canaries"
ITEMS_MODULE = f"{PREFIX}items"
"""Name under which ``harness.lm_eval_items`` is copied beside the tasks."""

VERSION = 1.0
"""Of the tasks' form. A change that changes a score raises it."""


class ExportError(HarnessError):
    """A canary cannot be exported so that both programs score the same ids. The message names the probe."""


@dataclass(frozen=True)
class _Task:
    """A canary that passed every test: what its two files will hold."""

    canary: Canary
    lines: str
    yaml: str


def task_name(canary: str) -> str:
    """The task of a canary.

    >>> task_name("C1a")
    'groundthink_C1a'
    """
    return f"{PREFIX}{canary}"


def export_tasks(
    canaries: Sequence[Canary], tokenizer: Tokenizer, directory: Path, *, window: int | None = None
) -> list[Path]:
    """Write the tasks of canaries into a directory, and return the files. The same canaries give the same bytes.

    tokenizer  the one whose single tokens the candidates are; the model must be run with the same
    window     tokens that the model can read at once, None for one without such a limit

    Raises ``ExportError`` when a text would be read or scored as other ids there than here, or exceeds ``window``:
    that program cuts such a context from the left, with no more than a warning.
    """
    names = [canary.id for canary in canaries]
    if not names or len(set(names)) < len(names):
        raise ExportError(f"canaries to export: {', '.join(names) or 'none'}; give each once, and at least one")
    tasks = [_task(canary, tokenizer, window) for canary in canaries]
    files = {f"{GROUP}.yaml": _group_text(names)}
    for task in tasks:
        name = task_name(task.canary.id)
        files |= {f"{name}.yaml": task.yaml, f"{name}.jsonl": task.lines}
    if any(_has_several_probes(canary) for canary in canaries):
        files[f"{ITEMS_MODULE}.py"] = Path(lm_eval_items.__file__).read_text(encoding="utf-8")
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (directory / file).write_text(text, encoding="utf-8", newline="\n")
    return [directory / file for file in files]


def documents(canary: Canary) -> Iterator[dict[str, Any]]:
    """One document a probe, in the order of the items."""
    for index, item in enumerate(canary.items):
        for number, probe in enumerate(item.probes):
            yield {
                "canary": canary.id,
                "item": index,
                "probe": number,
                "probes": len(item.probes),
                "need": item.need,
                "template": item.template,
                "context": probe.context,
                "choices": list(probe.candidates),
                # always a list: more than one answer may be right
                "gold": list(probe.gold),
            }


class _Ids:
    """One tokenizer twice: as we encode, and as a Hugging Face tokenizer made from the same file does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._own, self._client = (Tokenizer.from_str(tokenizer.to_str()) for _ in range(2))
        for copy in (self._own, self._client):
            # of the file's settings those two are replaced by what the caller of either program asks for
            copy.no_padding()
            copy.no_truncation()
        # a marker that a text spells is a text to us
        self._own.encode_special_tokens = True

    def own(self, text: str) -> list[int]:
        return list(self._own.encode(text, add_special_tokens=False).ids)

    def client(self, text: str) -> list[int]:
        return list(self._client.encode(text).ids)


def _task(canary: Canary, tokenizer: Tokenizer, window: int | None) -> _Task:
    if not canary.items:
        raise ExportError(f"{canary.id} has no items; an empty task cannot be scored")
    ids = _Ids(tokenizer)
    longest = max(
        _require_same_ids(probe, ids, f"{canary.id}, item {index}, probe {number}", window)
        for index, item in enumerate(canary.items)
        for number, probe in enumerate(item.probes)
    )
    found = list(documents(canary))
    facts = {
        "version": VERSION,
        "canary": canary.id,
        "items": len(canary.items),
        "chance": canary.chance,
        "longest_context_tokens": longest,
        "items_sha256": sha256_json(found),
        "tokenizer_sha256": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
    }
    lines = "".join(json.dumps(document) + "\n" for document in found)
    return _Task(canary, lines, _task_text(canary, facts))


def _require_same_ids(probe: Probe, ids: _Ids, where: str, window: int | None) -> int:
    """Tokens of the context. Raises ``ExportError`` unless both programs read and score the same ids."""
    if probe.context != probe.context.rstrip() or not probe.context:
        raise ExportError(
            f"{where}: the context ends {probe.context[-20:]!r}; lm-evaluation-harness moves white space at its end "
            f"into the choice, and reads an empty one as the end of a document\n  next  end the context with a word "
            f"or a mark; the space belongs to the choice"
        )
    context, read = ids.own(probe.context), ids.client(probe.context)
    # a tokenizer may put its BOS in front: add_bos_token=False takes it out again
    front = read[: len(read) - len(context)]
    if read != front + context:
        raise ExportError(
            f"{where}: a Hugging Face tokenizer made from this file would read other ids than the text's own: it adds "
            f"some at the end, or takes a spelt-out marker in the text for the marker\n  next  take the post-processor "
            f"out of tokenizer.json, and keep its special tokens out of the items"
        )
    scored = [_scored_id(probe, choice, context, front, ids, where) for choice in probe.candidates]
    if len(set(scored)) < len(scored):
        raise ExportError(f"{where}: two choices are the same token; each answer must be a token of its own")
    assert probe.gold, f"{where} has no right answer"
    assert all(0 <= gold < len(scored) for gold in probe.gold), f"{where}: gold is no index of a candidate"
    if window is not None and len(read) > window:
        raise ExportError(
            f"{where}: the context has {len(read)} tokens, the model reads {window}; lm-evaluation-harness would cut "
            f"it from the left\n  next  leave the canary out, or run a model with a longer window"
        )
    return len(read)


def _scored_id(probe: Probe, choice: str, context: list[int], front: list[int], ids: _Ids, where: str) -> int:
    whole = ids.own(probe.context + choice)
    if whole[:-1] != context or ids.client(probe.context + choice) != front + whole:
        raise ExportError(
            f"{where}: {choice!r} behind {probe.context[-20:]!r} is not the context's ids and one more\n  allowed  "
            f"choices that stay one token of their own behind the context\n  next  make the items with this tokenizer"
        )
    return whole[-1]


def _has_several_probes(canary: Canary) -> bool:
    return any(len(item.probes) > 1 for item in canary.items)


def _task_text(canary: Canary, facts: dict[str, Any]) -> str:
    # JSON is YAML, so every value is written as JSON. The path of the items is relative: the directory can be moved
    name = task_name(canary.id)
    several = _has_several_probes(canary)
    lines = [
        "# Written by harness.lm_eval_task; run lm_eval in this directory with --include_path .",
        f"task: {json.dumps(name)}",
        "dataset_path: json",
        "dataset_kwargs:",
        "  data_files:",
        f"    test: {json.dumps(f'{name}.jsonl')}",
        "test_split: test",
        "output_type: multiple_choice",
        "num_fewshot: 0",
        "doc_to_text: context",
        "doc_to_choice: choices",
        "doc_to_target: gold",
        # a choice begins with its own space
        'target_delimiter: ""',
        *([f"process_results: !function {ITEMS_MODULE}.results"] if several else []),
        "metric_list:",
        *_metric_lines("acc", "mean"),
        *(_metric_lines("item_acc", f"!function {ITEMS_MODULE}.item_accuracy") if several else []),
        "metadata:",
        *(f"  {key}: {json.dumps(value)}" for key, value in facts.items()),
    ]
    return "\n".join(lines) + "\n"


def _metric_lines(metric: str, aggregation: str) -> list[str]:
    return [f"  - metric: {metric}", f"    aggregation: {aggregation}", "    higher_is_better: true"]


def _group_text(canaries: Sequence[str]) -> str:
    # no mean over the canaries: their chances differ, and where an item has several probes acc counts probes
    lines = [f"group: {GROUP}", "task:", *(f"  - {json.dumps(task_name(name))}" for name in canaries)]
    return "\n".join([*lines, "metadata:", f"  version: {json.dumps(VERSION)}"]) + "\n"
