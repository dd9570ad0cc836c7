"""Files are written whole or not at all, and outputs are checked before any work."""

import os

import pytest

from multibox.errors import ConfigError, MultiboxError, in_words
from multibox.files import (
    check_outputs,
    free_path,
    make_numbered_folder,
    same_name,
    whole_file,
    write_bytes_whole,
    write_text_whole,
)


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    write_text_whole(tmp_path / ("ä" * 127), "a name as long as a name can be")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"new"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error:
        write_bytes_whole(tmp_path / "folder", b"x")
    assert error.value.filename == str(tmp_path / "folder")
    with pytest.raises(OSError) as error, whole_file(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as error, whole_file(tmp_path / "a"):
        (tmp_path / "another").read_bytes()
    assert error.value.filename == str(tmp_path / "another")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_names_are_numbered(tmp_path):
    assert free_path(tmp_path / "sheet.png") == tmp_path / "sheet.png"
    (tmp_path / "sheet.png").touch()
    (tmp_path / "sheet-2.png").symlink_to("nowhere")
    assert free_path(tmp_path / "sheet.png") == tmp_path / "sheet-3.png"
    made = [make_numbered_folder(tmp_path / "deep" / "found").name for _ in range(3)]
    assert made == ["found", "found-2", "found-3"]


def test_outputs_that_collide_are_refused(tmp_path):
    taken, source = tmp_path / "taken", tmp_path / "source"
    write_text_whole(taken, "x")
    write_text_whole(source, "x")
    check_outputs([tmp_path / "new" / "deep" / "file", tmp_path / "other"])
    check_outputs([taken], overwrite=True, inputs=[source])
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "gone").symlink_to("nowhere")
    for targets, options, said in (
        ([taken], {}, "taken exists already; give another place, or --overwrite"),
        ([tmp_path / "gone"], {}, "gone exists already"),
        ([taken, source], {}, r"taken and 1 other file exist already; .* to replace them"),
        ([tmp_path], {"overwrite": True}, "is a folder, expected the name of a file"),
        ([source], {"overwrite": True, "inputs": [source]}, "source belongs to the input"),
        ([tmp_path / "link"], {"overwrite": True, "inputs": [source]}, "link belongs to the input"),
        ([source], {"overwrite": True, "inputs": [tmp_path / "link"]}, "source belongs to the input"),
        ([taken], {"overwrite": True, "inputs": [tmp_path]}, "taken belongs to the input"),
        ([tmp_path / "a", tmp_path / "b" / ".." / "A"], {}, "two outputs would be written to .*a"),
        ([taken / "below"], {}, "taken is no folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_outputs(targets, **options)


def test_what_is_no_regular_file_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_outputs([pipe])
        write_bytes_whole(pipe, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_names_that_some_file_systems_take_for_one():
    assert same_name("Ä") == same_name("ä") == same_name("a\u0308")
    assert same_name("a") != same_name("b")


def test_an_error_is_told_in_one_line():
    assert in_words(MultiboxError("the data is empty;\ngive another")) == "the data is empty;\\ngive another"
    full = OSError(28, "No space left on device", "runs/a/last.safetensors")
    assert in_words(full) == "runs/a/last.safetensors cannot be read or written (No space left on device)"
    assert in_words(KeyError("rows")) == "KeyError: 'rows'"
