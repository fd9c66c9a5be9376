import json
import os

import pytest

from lpa.errors import LPAWarning
from lpa.storage.run_directory import CHECKPOINT_MANIFEST_FILE, LATEST_CHECKPOINT_FILE
from lpa.train.checkpoint import store


def write_checkpoint(run, step, text="weights"):
    partial = store.partial_path(run, step)
    store.create_partial(partial)
    (partial / "shard.safetensors").write_text(text)
    files = {"shard.safetensors": store.file_checksum(partial / "shard.safetensors")}
    content = {"state": {"step": step}, "fingerprints": {}, "torch": "2.13.0"}
    return store.write_manifest(run, partial, content, files)


def names(paths):
    return [path.name for path in paths]


def test_a_complete_checkpoint_says_what_it_holds(tmp_path):
    path = write_checkpoint(tmp_path, 10)
    assert path == store.checkpoint_path(tmp_path, 10)
    content = store.read_manifest(path)
    assert content.state.step == 10
    store.check_names(path, content.files)
    store.check_file(path / "shard.safetensors", content.files["shard.safetensors"])
    assert store.list_checkpoints(tmp_path) == store.resumable_checkpoints(tmp_path) == [path]
    assert store.unfinished_checkpoints(tmp_path) == []


def test_a_partial_directory_is_never_counted_and_goes_with_the_next_save(tmp_path):
    write_checkpoint(tmp_path, 10)
    partial = store.partial_path(tmp_path, 20)
    store.create_partial(partial)
    (partial / "shard.safetensors").write_text("half")
    bare = store.checkpoint_path(tmp_path, 30)
    bare.mkdir()  # the right name and no manifest
    assert names(store.resumable_checkpoints(tmp_path)) == ["step-00000010"]
    assert names(store.unfinished_checkpoints(tmp_path)) == [
        ".step-00000020.partial",
        "step-00000030",
    ]
    write_checkpoint(tmp_path, 25)
    assert not partial.exists()
    assert bare.exists(), "it may be somebody's"


def test_retention_deletes_only_what_it_wrote(tmp_path):
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    foreign = [
        store.checkpoints_directory(tmp_path) / name
        for name in ("step-00000005", "step-00000040", "step-00000010-copy", "mine", "step-1")
    ]
    for path in foreign:
        path.mkdir()
        (path / "precious.txt").write_text("keep me")
    note = store.checkpoints_directory(tmp_path) / "notes.txt"
    note.write_text("a file")
    store.delete_old_checkpoints(tmp_path, 1)
    assert names(store.list_checkpoints(tmp_path)) == ["step-00000030"]
    assert all((path / "precious.txt").exists() for path in foreign)
    assert note.exists()


def test_higher_steps_of_an_abandoned_future_do_not_count(tmp_path):
    """Going back to step 10 and saving 20 keeps 20, though 60 lies there."""
    for step in (10, 60):
        write_checkpoint(tmp_path, step)
    store.go_back_to(tmp_path, 10)
    write_checkpoint(tmp_path, 20)
    store.delete_old_checkpoints(tmp_path, 2)
    assert names(store.resumable_checkpoints(tmp_path)) == ["step-00000020", "step-00000010"]
    assert store.checkpoint_path(tmp_path, 60).exists()
    write_checkpoint(tmp_path, 60, "the new future")
    store.delete_old_checkpoints(tmp_path, 2)
    assert names(store.list_checkpoints(tmp_path)) == ["step-00000020", "step-00000060"]
    assert (store.checkpoint_path(tmp_path, 60) / "shard.safetensors").read_text() != "weights"


def test_an_abandoned_future_does_not_count_where_its_steps_are_passed_either(tmp_path):
    for step in (10, 40, 60):
        write_checkpoint(tmp_path, step)
    store.go_back_to(tmp_path, 10)
    for step in (30, 50):
        write_checkpoint(tmp_path, step)
        store.delete_old_checkpoints(tmp_path, 2)
    assert names(store.resumable_checkpoints(tmp_path)) == ["step-00000050", "step-00000030"]
    assert store.checkpoint_path(tmp_path, 40).exists()  # not the run's to delete
    write_checkpoint(tmp_path, 60, "the new future")
    assert names(store.resumable_checkpoints(tmp_path))[:2] == ["step-00000060", "step-00000050"]
    store.go_back_to(tmp_path, 60)  # an ordinary resume changes nothing
    assert len(store.resumable_checkpoints(tmp_path)) == 3
    store.go_back_to(tmp_path, 40)
    write_checkpoint(tmp_path, 45)
    assert names(store.resumable_checkpoints(tmp_path)) == ["step-00000045", "step-00000040"]


def test_a_note_of_the_latest_from_an_earlier_version_is_read(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    (store.checkpoints_directory(tmp_path) / "latest.json").write_text('{"step": 10}')
    assert names(store.resumable_checkpoints(tmp_path)) == ["step-00000010"]


def test_without_a_note_of_the_latest_the_highest_step_is(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    (store.checkpoints_directory(tmp_path) / "latest.json").write_text("{")
    assert names(store.resumable_checkpoints(tmp_path)) == ["step-00000020", "step-00000010"]


def test_a_directory_in_the_way_gets_another_name(tmp_path):
    path = store.checkpoint_path(tmp_path, 10)
    for number in (1, 2):
        path.mkdir(parents=True)
        (path / "precious.txt").write_text("keep me")
        with pytest.warns(
            LPAWarning, match=f"is not a complete checkpoint; renamed to .*damaged-{number}"
        ):
            store.create_partial(store.partial_path(tmp_path, 10))
        aside = path.with_name(f"{path.name}.damaged-{number}")
        assert (aside / "precious.txt").read_text() == "keep me"
    assert write_checkpoint(tmp_path, 10) == path
    assert store.list_checkpoints(tmp_path) == [path]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.write_bytes(b"weighty"), r"shard.safetensors: its content is not what was"),
        (lambda f: f.write_bytes(b"weight"), r"shard.safetensors: has 6 bytes of 7"),
        (lambda f: f.write_bytes(b""), r"shard.safetensors: has 0 bytes of 7"),
    ],
    ids=["flipped", "truncated", "empty"],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = write_checkpoint(tmp_path, 10)
    file = path / "shard.safetensors"
    damage(file)
    expected = store.read_manifest(path).files[file.name]
    with pytest.raises(store.DamagedCheckpointError, match=message):
        store.check_file(file, expected)


def test_a_missing_file_is_named(tmp_path):
    path = write_checkpoint(tmp_path, 10)
    (path / "shard.safetensors").unlink()
    with pytest.raises(store.DamagedCheckpointError, match=r"shard.safetensors: is missing"):
        store.check_names(path, store.read_manifest(path).files)


def test_files_that_the_main_process_does_not_see_complete_no_checkpoint(tmp_path):
    partial = store.partial_path(tmp_path, 10)
    store.create_partial(partial)
    files = {"shard.safetensors": store.StoredFile(7, "of another machine")}
    with pytest.raises(OSError, match=r"shard.safetensors: is missing; expected a directory that"):
        store.write_manifest(tmp_path, partial, {}, files)
    assert store.list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("place", range(0, 400, 40))
def test_no_byte_of_the_manifest_can_change_unnoticed(tmp_path, place):
    path = write_checkpoint(tmp_path, 10)
    manifest = path / CHECKPOINT_MANIFEST_FILE
    content = bytearray(manifest.read_bytes())
    place %= len(content)
    content[place] ^= 1
    changed = bytes(content)
    try:
        same = json.loads(changed) == json.loads(manifest.read_bytes())
    except ValueError:
        same = False
    manifest.write_bytes(changed)
    if same:  # whitespace
        pytest.skip("the byte means nothing")
    with pytest.raises(store.DamagedCheckpointError, match=r"manifest\.json: is damaged"):
        store.read_manifest(path)
    assert store.list_checkpoints(tmp_path) == []


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("format", 3, "has format 3; this version reads 2"),
        ("state", {"step": 20, "later": 0}, "later"),
        ("later", 0, "later"),
    ],
)
def test_an_intact_checkpoint_of_another_version_is_none_that_is_damaged(
    tmp_path, field, value, reason
):
    write_checkpoint(tmp_path, 10)
    path = write_checkpoint(tmp_path, 20)
    manifest = path / CHECKPOINT_MANIFEST_FILE
    content = json.loads(manifest.read_bytes())["content"] | {field: value}
    document = {"sha256": store.content_digest(content), "content": content}
    manifest.write_text(json.dumps(document))
    with pytest.raises(store.OtherVersionError, match=f"another version of lpa.*{reason}"):
        store.read_manifest(path)
    assert store.resumable_checkpoints(tmp_path)[0] == path, "not passed over for an older one"
    assert store.unfinished_checkpoints(tmp_path) == []
    store.create_partial(store.partial_path(tmp_path, 20))
    assert json.loads(manifest.read_bytes()) == document


def test_what_a_later_version_notes_of_the_latest_is_left_aside(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    store.go_back_to(tmp_path, 10)
    file = store.checkpoints_directory(tmp_path) / LATEST_CHECKPOINT_FILE
    noted = json.loads(file.read_text())
    file.write_text(json.dumps(noted | {"written_by": "9.0"}))
    assert names(store.resumable_checkpoints(tmp_path)) == ["step-00000010"]


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", ".metadata"],
)
def test_a_manifest_cannot_point_outside_or_at_pickles(tmp_path, name):
    path = write_checkpoint(tmp_path, 10)
    with pytest.raises(
        store.DamagedCheckpointError, match=r"expected plain names of \.safetensors"
    ):
        store.check_names(path, [name])


def test_links_and_files_beyond_the_manifest_are_refused(tmp_path):
    path = write_checkpoint(tmp_path, 10)
    file = path / "shard.safetensors"
    with pytest.raises(store.DamagedCheckpointError, match="does not belong to the checkpoint"):
        store.check_names(path, [])
    os.replace(file, tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(store.DamagedCheckpointError, match="is a link"):
        store.check_names(path, [file.name])


def test_abandoned_checkpoints_stay_abandoned_when_all_others_are_removed(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    store.go_back_to(tmp_path, 10)
    write_checkpoint(tmp_path, 30)
    store.remove_all(tmp_path)
    assert names(store.list_checkpoints(tmp_path)) == ["step-00000020"]
    assert store.resumable_checkpoints(tmp_path) == []


def test_nothing_is_left_of_checkpoints_that_all_lead_to_the_end(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    store.remove_all(tmp_path)
    assert not store.checkpoints_directory(tmp_path).exists()
