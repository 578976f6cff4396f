"""The store: built once, stored whole or not at all, damage found, room made."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.hashing import canonical_json, sha256_json, source_sha256
from harness.store import MANIFEST, Store, StoreError
from harness.store_cli import main

FIELDS = {"model": "GF-MH", "seed": 17, "train": {"lr": 2e-3}}


def write_result(directory: Path) -> None:
    (directory / "inner").mkdir(exist_ok=True)
    (directory / "result.txt").write_text("42")
    (directory / "inner" / "more.bin").write_bytes(b"\0" * 1000)


def never(directory: Path) -> None:
    raise AssertionError("this must not be built again")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def python(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_result_is_built_once_and_found_again(store):
    entry = store.get_or_build("run", FIELDS, write_result)
    again = store.get_or_build("run", FIELDS, never)
    later = Store(store.root).get_or_build("run", FIELDS, never)
    assert entry == again == later
    assert (entry.path / "result.txt").read_text() == "42"
    assert entry.fields == FIELDS
    assert set(entry.files) == {"result.txt", "inner/more.bin"}
    assert entry.num_bytes == 1002


@pytest.mark.parametrize(
    "other",
    [{**FIELDS, "seed": 18}, {**FIELDS, "train": {"lr": 2.1e-3}}, {**FIELDS, "extra": None}, {"model": "GF-MH"}],
)
def test_any_other_field_is_another_entry(store, other):
    first = store.get_or_build("run", FIELDS, write_result)
    second = store.get_or_build("run", other, write_result)
    assert first.key != second.key
    assert store.get_or_build("corpus", FIELDS, write_result).key not in {first.key, second.key}
    assert len(store.paths()) == 3


def test_the_order_of_fields_does_not_matter(store):
    store.get_or_build("run", FIELDS, write_result)
    store.get_or_build("run", dict(reversed(FIELDS.items())), never)


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}, Path("x")])
def test_a_field_without_one_json_form_is_refused(store, value):
    with pytest.raises((TypeError, ValueError)):
        store.get_or_build("run", {"field": value}, never)


def test_two_processes_that_want_the_same_result_build_it_once(store, tmp_path):
    code = """
import sys, time
from pathlib import Path
from harness.store import Store
def build(directory):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    (directory / "result.txt").write_text("42")
entry = Store(Path(sys.argv[1])).get_or_build("run", {"seed": 1}, build)
print((entry.path / "result.txt").read_text())
"""
    log = tmp_path / "log"
    processes = [python(code, str(store.root), str(log)) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == ["42\n", "42\n"]
    assert log.read_text() == "built\n"


def numbered(seeds):
    return [{"seed": seed} for seed in seeds]


def test_several_results_are_built_in_one_go_and_those_there_are_not_built_again(store):
    store.get_or_build("run", {"seed": 2}, write_result)
    given = []

    def build(directories, filled):
        given.append(list(directories))
        for index, directory in directories.items():
            (directory / "result.txt").write_text(str(index))
            filled(index)

    entries = store.get_or_build_all("run", numbered([1, 2, 3, 1]), build)
    assert given == [[0, 2]]
    assert [(entry.path / "result.txt").read_text() for entry in entries] == ["0", "42", "2", "0"]
    assert [entry.fields["seed"] for entry in entries] == [1, 2, 3, 1]
    assert store.get_or_build_all("run", numbered([3, 1]), build) == [entries[2], entries[0]]
    assert len(given) == 1


def test_of_several_results_those_that_are_filled_stay_when_the_rest_fails(store):
    def build(directories, filled):
        for directory in directories.values():
            (directory / "half.txt").write_text("half")
        write_result(directories[1])
        filled(1)
        assert [path.name for path in store.paths()] == [store.path_of("run", {"seed": 2}).name], "stored at once"
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.get_or_build_all("run", numbered([1, 2, 3]), build, resumable=True)
    assert len(store.paths()) == 1
    assert len(store.partial_paths()) == 2

    def rest(directories, filled):
        assert list(directories) == [0, 2]
        for index, directory in directories.items():
            assert (directory / "half.txt").is_file(), "as it was left"
            filled(index)

    assert len(store.get_or_build_all("run", numbered([1, 2, 3]), rest, resumable=True)) == 3


SEVERAL = """
import os, signal, sys, time
from pathlib import Path
from harness.store import Store
def build(directories, filled):
    for index, directory in directories.items():
        time.sleep(0.3)
        with open(sys.argv[2], "a") as log:
            log.write(f"{seeds[index]}\\n")
        (directory / "result.txt").write_text(str(seeds[index]))
        filled(index)
        if sys.argv[4:]:
            os.kill(os.getpid(), signal.SIGKILL)
seeds = [int(seed) for seed in sys.argv[3].split(",")]
entries = Store(Path(sys.argv[1])).get_or_build_all("run", [{"seed": seed} for seed in seeds], build, resumable=True)
print(*[(entry.path / "result.txt").read_text() for entry in entries])
"""


def test_two_processes_that_want_overlapping_results_build_each_once(store, tmp_path):
    log = tmp_path / "log"
    wanted = ["1,2,3", "3,2,4", "4,3,1"]
    processes = [python(SEVERAL, str(store.root), str(log), seeds) for seeds in wanted]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == [seeds.replace(",", " ") + "\n" for seeds in wanted]
    assert sorted(log.read_text().split()) == ["1", "2", "3", "4"]


def test_of_several_results_a_kill_loses_none_that_was_filled(store, tmp_path):
    log = tmp_path / "log"
    killed = python(SEVERAL, str(store.root), str(log), "1,2", "kill")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    again = python(SEVERAL, str(store.root), str(log), "1,2")
    assert again.communicate(timeout=60)[0] == "1 2\n"
    assert log.read_text().split() == ["1", "2"]


def test_a_build_that_raises_stores_nothing_and_is_tried_again(store):
    def fail(directory):
        (directory / "half.txt").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.get_or_build("run", FIELDS, fail)
    assert store.paths() == []
    entry = store.get_or_build("run", FIELDS, write_result)
    assert "half.txt" not in entry.files, "an ordinary build starts in an empty directory"


def test_a_resumable_build_finds_what_was_left(store):
    def first(directory):
        (directory / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_build("run", FIELDS, first, resumable=True)
    assert len(store.partial_paths()) == 1
    entry = store.get_or_build("run", FIELDS, write_result, resumable=True)
    assert "half.txt" in entry.files
    assert store.partial_paths() == []


def test_a_killed_build_leaves_the_store_usable_and_goes_on(store):
    code = """
import os, sys, time
from pathlib import Path
from harness.store import Store
def build(directory):
    (directory / "half.txt").write_text("half")
    print("building", flush=True)
    time.sleep(60)
Store(Path(sys.argv[1])).get_or_build("run", {"seed": 1}, build, resumable=True)
"""
    process = python(code, str(store.root))
    assert process.stdout.readline() == "building\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert store.paths() == []
    entry = store.get_or_build("run", {"seed": 1}, write_result, resumable=True)
    assert {"half.txt", "result.txt"} <= entry.files.keys()


def test_a_manifest_left_in_a_partial_directory_is_not_believed(store):
    # killed between the manifest and the move, then the files changed
    (path,) = [store.get_or_build("run", FIELDS, write_result).path]
    path.rename(path.with_name(path.name + ".partial"))
    entry = store.get_or_build("run", FIELDS, lambda directory: None, resumable=True)
    assert set(entry.files) == {"result.txt", "inner/more.bin"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["build", "move"])
def test_a_full_disk_is_explained_and_leaves_the_store_usable(store, monkeypatch, where, code):
    store.get_or_build("run", {"seed": 0}, write_result)

    def full(*arguments):
        raise OSError(code, os.strerror(code))

    def partly(directory):
        (directory / "half.txt").write_text("half")
        full()

    build = partly if where == "build" else write_result
    with monkeypatch.context() as patch:
        if where == "move":
            patch.setattr("os.replace", full)
        with pytest.raises(StoreError) as caught:
            store.get_or_build("run", FIELDS, build)
    message = str(caught.value)
    assert str(store.root) in message
    assert "about 0.0 MB" in message
    assert "prune --older-than" in message
    assert len(store.paths()) == 1
    store.get_or_build("run", FIELDS, write_result)


def test_other_errors_of_the_system_are_not_called_a_full_disk(store):
    def fail(directory):
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output"):
        store.get_or_build("run", FIELDS, fail)


def test_a_store_that_cannot_be_written_says_so(store):
    def fail(directory):
        raise PermissionError(errno.EACCES, "Permission denied", str(directory / "x"))

    with pytest.raises(StoreError, match="--store DIR"):
        store.get_or_build("run", FIELDS, fail)


def damage_content(path):
    (path / "result.txt").write_text("43")


def damage_missing(path):
    (path / "result.txt").unlink()


def damage_extra(path):
    (path / "new.txt").write_text("new")


def damage_manifest(path):
    (path / MANIFEST).write_text("{")


def damage_no_manifest(path):
    (path / MANIFEST).unlink()


def damage_fields(path):
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["fields"]["seed"] = 18
    (path / MANIFEST).write_text(json.dumps(manifest))


def damage_version(path):
    # of another version of this program, older or newer
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["schema_version"] += 1
    (path / MANIFEST).write_text(json.dumps(manifest))


DAMAGE = [damage_content, damage_missing, damage_extra, damage_manifest, damage_no_manifest, damage_fields,
          damage_version]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_named_with_the_way_out(store, damage, capsys):
    entry = store.get_or_build("run", FIELDS, write_result)
    store.get_or_build("run", {"seed": 0}, write_result)
    assert main(["verify", "--store", str(store.root)]) == 0
    damage(entry.path)
    with pytest.raises(StoreError, match="prune --damaged") as caught:
        Store(store.root).get_or_build("run", FIELDS, never)
    assert str(entry.path) in str(caught.value)
    capsys.readouterr()
    assert main(["verify", "--store", str(store.root)]) == 1
    assert str(entry.path) in capsys.readouterr().out
    assert main(["prune", "--damaged", "--store", str(store.root)]) == 0
    assert main(["verify", "--store", str(store.root)]) == 0
    assert len(store.paths()) == 1
    assert Store(store.root).get_or_build("run", FIELDS, write_result).files == entry.files


def test_list_shows_what_is_stored(store, capsys):
    entry = store.get_or_build("run", FIELDS, write_result)
    assert main(["list", "--store", str(store.root)]) == 0
    shown = capsys.readouterr().out
    assert entry.key[:12] in shown
    assert "1 entries, 0.0 MB" in shown


def test_prune_needs_to_be_told_what(store, capsys):
    store.get_or_build("run", FIELDS, write_result)
    with pytest.raises(SystemExit) as caught:
        main(["prune", "--store", str(store.root)])
    assert caught.value.code == 2
    assert "--older-than" in capsys.readouterr().err
    assert len(store.paths()) == 1


def age(path: Path, days: float) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["created"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_prune_deletes_what_meets_every_condition(store):
    old_run = store.get_or_build("run", FIELDS, write_result).path
    new_run = store.get_or_build("run", {"seed": 0}, write_result).path
    old_corpus = store.get_or_build("corpus", FIELDS, write_result).path
    age(old_run, 40)
    age(old_corpus, 40)
    arguments = ["prune", "--older-than", "30", "--kind", "run", "--store", str(store.root)]
    main([*arguments, "--dry-run"])
    assert len(store.paths()) == 3
    main(arguments)
    assert store.paths() == sorted([new_run, old_corpus])
    main(["prune", "--kind", "run", "--store", str(store.root)])
    assert store.paths() == [old_corpus]


def test_prune_leaves_a_build_alone_that_is_running(store, capsys):
    started, finish = threading.Event(), threading.Event()

    def build(directory):
        write_result(directory)
        started.set()
        finish.wait(30)

    thread = threading.Thread(target=lambda: store.get_or_build("run", FIELDS, build))
    thread.start()
    assert started.wait(30)
    code = "import sys; from harness.store_cli import main; main(['prune', '--partial', '--store', sys.argv[1]])"
    shown = python(code, str(store.root)).communicate(timeout=60)[0]
    finish.set()
    thread.join()
    assert "it is being built" in shown
    assert len(store.paths()) == 1
    interrupted = store.root / "run" / "abc.partial"
    interrupted.mkdir()
    main(["prune", "--partial", "--store", str(store.root)])
    assert not interrupted.exists()
    assert len(store.paths()) == 1


def test_the_program_runs_as_a_module(store, tmp_path):
    store.get_or_build("run", FIELDS, write_result)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "harness.store"]
    run = subprocess.run(
        [*command, "verify", "--store", str(store.root)], env=environment, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "1 entries, 0 damaged\n")
    run = subprocess.run(
        [*command, "list", "--store", str(tmp_path / "no")], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "there is no store at" in run.stderr


def test_the_store_does_not_need_torch():
    code = (
        "import sys, harness.store_cli, harness.config, harness.events, harness.runlog; print('torch' in sys.modules)"
    )
    assert python(code).communicate(timeout=60)[0] == "False\n"


def test_canonical_json_has_one_form_for_one_value():
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"\\u00e9"],"b":1}'
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_the_source_hash_changes_with_the_source_and_not_with_the_order(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "code.cpp").write_text("int x;")
    (tmp_path / "some_module.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = source_sha256(["some_package", "some_module"])
    assert source_sha256(["some_module", "some_package"]) == first
    (package / "notes.md").write_text("not source")
    assert source_sha256(["some_package", "some_module"]) == first
    (package / "code.cpp").write_text("int y;")
    second = source_sha256(["some_package", "some_module"])
    (tmp_path / "some_module.py").write_text("x = 2\n")
    assert len({first, second, source_sha256(["some_package", "some_module"])}) == 3


def test_a_waiting_process_is_not_in_a_hurry(store):
    # the lock is held by this thread for a while; the other one waits and then finds the entry
    def slow(directory):
        time.sleep(0.2)
        write_result(directory)

    results = []
    threads = [
        threading.Thread(target=lambda: results.append(Store(store.root).get_or_build("run", FIELDS, slow)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert results[0] == results[1] == results[2]
