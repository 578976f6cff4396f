import dataclasses
import json
import math

import pytest
import yaml
from tokenizers import Tokenizer, processors

from fixtures import tokenizers
from harness.forced_choice import Canary, Item, Probe
from harness.lm_eval_items import item_accuracy, results
from harness.lm_eval_task import ExportError, export_tasks

COLOURS = ("red", "blue", "green", "black")
TEXT = "".join(f"Ann likes {colour}. I like {colour} too. " for colour in COLOURS) * 20


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("bpe", [TEXT], 330)


def probe(context="Ann likes red. I like", candidates=COLOURS, gold=(0,)):
    return Probe(context, tuple(f" {word}" for word in candidates), gold, "I like")


def canary(*probes, name="C1a"):
    return Canary(name, tuple(Item((each,), 1, index) for index, each in enumerate(probes)), 0.25)


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: f"function {loader.construct_scalar(node)}")


def written(directory, name):
    task = yaml.load((directory / f"groundthink_{name}.yaml").read_text(), Loader)
    lines = (directory / f"groundthink_{name}.jsonl").read_text().splitlines()
    return task, [json.loads(line) for line in lines]


def test_a_probe_is_a_document(tokenizer, tmp_path):
    two = canary(probe(), probe(gold=(1, 2)))
    export_tasks([two], tokenizer, tmp_path / "new")
    task, lines = written(tmp_path / "new", "C1a")
    assert [line["context"] for line in lines] == [each.probes[0].context for each in two.items]
    assert [line["choices"] for line in lines] == [[" red", " blue", " green", " black"]] * 2
    # a list even where there is one: that program looks at the first document to see whether there can be several
    assert [line["gold"] for line in lines] == [[0], [1, 2]]
    assert [(line["canary"], line["item"], line["template"]) for line in lines] == [("C1a", 0, 0), ("C1a", 1, 1)]
    fields = {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "gold"}
    assert {key: task[key] for key in fields} == fields
    assert set(fields.values()) <= set(lines[0])
    assert task["dataset_kwargs"] == {"data_files": {"test": "groundthink_C1a.jsonl"}}
    assert task["target_delimiter"] == ""
    assert task["num_fewshot"] == 0
    assert "process_results" not in task


def test_the_group_names_every_task(tokenizer, tmp_path):
    files = export_tasks([canary(probe()), canary(probe(), name="C3c")], tokenizer, tmp_path)
    group = yaml.safe_load((tmp_path / "groundthink_canaries.yaml").read_text())
    assert group["task"] == ["groundthink_C1a", "groundthink_C3c"]
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert not (tmp_path / "groundthink_items.py").exists()


def test_the_same_canaries_give_the_same_bytes_and_others_do_not(tokenizer, tmp_path):
    for name, first in (("a", probe()), ("b", probe()), ("c", probe(gold=(1,)))):
        export_tasks([canary(first, probe())], tokenizer, tmp_path / name)
    text = {name: [file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in "abc"}
    assert text["a"] == text["b"]
    assert text["a"] != text["c"]
    hashes = [written(tmp_path / name, "C1a")[0]["metadata"]["items_sha256"] for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("end", [" ", "\n", "\t", "\u00a0", ""])
def test_a_context_ends_with_a_word(tokenizer, tmp_path, end):
    broken = canary(probe(), probe(f"I like{end}" if end else ""))
    with pytest.raises(ExportError, match="C1a, item 1, probe 0: the context ends"):
        export_tasks([broken], tokenizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("choice", ["violet", "red blue"])
def test_a_choice_is_one_token(tokenizer, tmp_path, choice):
    with pytest.raises(ExportError, match=r"item 0, probe 0: .* is not the context's ids and one more"):
        export_tasks([canary(probe(candidates=(choice, "blue")))], tokenizer, tmp_path)


def test_a_choice_that_merges_with_the_context_is_refused(tokenizer, tmp_path):
    merging = Probe("Ann li", ("kes", "ke"), (0,), "Ann")
    assert len(tokenizer.encode("Ann likes").ids) == len(tokenizer.encode("Ann").ids) + 1
    with pytest.raises(ExportError, match="'kes' behind 'Ann li' is not the context's ids and one more"):
        export_tasks([canary(merging)], tokenizer, tmp_path)


def test_two_choices_are_two_tokens(tokenizer, tmp_path):
    with pytest.raises(ExportError, match="two choices are the same token"):
        export_tasks([canary(probe(candidates=("red", "blue", "red")))], tokenizer, tmp_path)


def test_a_spelt_out_marker_would_be_read_as_the_marker(tokenizer, tmp_path):
    with pytest.raises(ExportError, match="would read other ids than the text's own"):
        export_tasks([canary(probe("Ann <|endoftext|> I like"))], tokenizer, tmp_path)


def test_a_choice_that_is_a_marker_there_is_refused(tokenizer, tmp_path):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens([" blue"])
    export_tasks([canary(probe(candidates=("red", "green")))], copy, tmp_path / "none")
    with pytest.raises(ExportError, match="' blue' behind"):
        export_tasks([canary(probe(candidates=("red", "blue")))], copy, tmp_path / "marker")


def closed_with(tokenizer, template):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<|endoftext|>", 0)])
    return copy


def test_a_marker_in_front_is_allowed_and_one_behind_is_not(tokenizer, tmp_path):
    export_tasks([canary(probe())], tokenizer, tmp_path / "plain")
    export_tasks([canary(probe())], closed_with(tokenizer, "<|endoftext|> $A"), tmp_path / "bos")
    longest = [written(tmp_path / name, "C1a")[0]["metadata"]["longest_context_tokens"] for name in ("plain", "bos")]
    assert longest[1] == longest[0] + 1
    with pytest.raises(ExportError, match="it adds some at the end"):
        export_tasks([canary(probe())], closed_with(tokenizer, "$A <|endoftext|>"), tmp_path / "eos")


def test_settings_that_no_program_uses_do_not_count(tokenizer, tmp_path):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(3)
    copy.enable_padding(length=50)
    export_tasks([canary(probe())], copy, tmp_path)
    assert copy.truncation["max_length"] == 3, "and the tokenizer that was given is as it was"
    assert written(tmp_path, "C1a")[0]["metadata"]["longest_context_tokens"] == len(tokenizer.encode(probe().context))


def test_a_context_longer_than_the_window_is_refused(tokenizer, tmp_path):
    length = len(tokenizer.encode(probe().context))
    export_tasks([canary(probe())], tokenizer, tmp_path, window=length)
    with pytest.raises(ExportError, match=f"has {length} tokens, the model reads {length - 1}"):
        export_tasks([canary(probe())], tokenizer, tmp_path, window=length - 1)


@pytest.mark.parametrize("names", [[], ["C1a", "C1a"]])
def test_a_canary_is_exported_once(tokenizer, tmp_path, names):
    with pytest.raises(ExportError, match="give each once, and at least one"):
        export_tasks([canary(probe(), name=name) for name in names], tokenizer, tmp_path)


def test_an_empty_canary_is_refused(tokenizer, tmp_path):
    with pytest.raises(ExportError, match="C1a has no items"):
        export_tasks([canary()], tokenizer, tmp_path)


def test_items_of_several_probes_bring_their_own_count(tokenizer, tmp_path):
    joint = Canary("C5b", (Item((probe(), probe(gold=(3,)), probe(gold=(1, 2))), 2, 0),), 0.1)
    export_tasks([joint, canary(probe())], tokenizer, tmp_path)
    task, lines = written(tmp_path, "C5b")
    assert task["process_results"] == "function groundthink_items.results"
    assert [each["metric"] for each in task["metric_list"]] == ["acc", "item_acc"]
    assert task["metric_list"][1]["aggregation"] == "function groundthink_items.item_accuracy"
    assert "process_results" not in written(tmp_path, "C1a")[0]
    copied = {}
    exec((tmp_path / "groundthink_items.py").read_text(), copied)  # as that program does: alone
    # two of three must be right
    for chosen, right, item in (((0, 3, 0), [1, 1, 0], 1), ((0, 0, 0), [1, 0, 0], 0)):
        log_ps = [[-1.0 if index == choice else -2.0 for index in range(4)] for choice in chosen]
        scored = [
            copied["results"](line, [(log_p, False) for log_p in each])
            for line, each in zip(lines, log_ps, strict=True)
        ]
        assert [each["acc"] for each in scored] == right
        assert copied["item_accuracy"]([each["item_acc"] for each in scored]) == item


def test_one_item_of_several_probes_is_enough_to_count_items(tokenizer, tmp_path):
    mixed = Canary("C5b", (Item((probe(),), 1, 0), Item((probe(), probe()), 2, 1)), 0.1)
    export_tasks([mixed], tokenizer, tmp_path)
    assert "process_results" in written(tmp_path, "C5b")[0]


def test_an_item_holds_when_enough_of_its_probes_are_right():
    assert item_accuracy([(0, 2, 2, True), (1, 2, 2, True), (0, 2, 2, True), (1, 2, 2, False)]) == 0.5
    assert item_accuracy([(0, 2, 1, False), (0, 2, 1, True)]) == 1


def test_an_item_cut_by_a_limit_does_not_count():
    assert item_accuracy([(0, 2, 1, False), (0, 2, 1, False), (1, 2, 1, True)]) == 0
    assert math.isnan(item_accuracy([(0, 2, 1, True)]))


def test_the_likeliest_choice_counts_and_any_right_one_will_do():
    document = {"item": 4, "probes": 3, "need": 2, "gold": [1, 2]}
    assert results(document, [(-2.0, False), (-3.0, False), (-1.0, True)]) == {"acc": 1, "item_acc": (4, 3, 2, True)}
    assert results(document, [(-1.0, True), (-3.0, False), (-2.0, False)])["acc"] == 0


def test_what_is_written_follows_every_field_of_a_probe(tokenizer, tmp_path):
    plain = probe()
    export_tasks([canary(plain)], tokenizer, tmp_path / "plain")
    changed = {"context": "Ann likes blue. I like", "candidates": plain.candidates[::-1], "gold": (2,)}
    for field, value in changed.items():
        export_tasks([canary(dataclasses.replace(plain, **{field: value}))], tokenizer, tmp_path / field)
        assert written(tmp_path / field, "C1a")[1] != written(tmp_path / "plain", "C1a")[1]
