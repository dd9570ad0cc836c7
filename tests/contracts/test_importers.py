"""What every importer must do; a new entry of the table is tested by being there."""

import pytest
import torch

from multibox.cli.lists import show
from multibox.errors import MultiboxError
from multibox.importers import IMPORTERS, import_file
from multibox.importers.common import Importer


@pytest.mark.parametrize("kind", IMPORTERS)
@pytest.mark.parametrize("content", ["text", "tensors", "empty"])
def test_a_foreign_file_gets_one_sentence_and_leaves_nothing(kind, content, tmp_path):
    file, out = tmp_path / "weights.bin", tmp_path / "out.safetensors"
    if content == "tensors":
        torch.save({"some.weight": torch.zeros(3), "other": torch.zeros(2, 2)}, file)
    else:
        file.write_text("these are no weights" if content == "text" else "")
    with pytest.raises(MultiboxError) as error:
        import_file(kind, file, out, [])
    assert str(file) in str(error.value) or "pip install" in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_the_list_says_which_ones_no_foreign_number_verified(monkeypatch, capsys):
    monkeypatch.setitem(IMPORTERS, "attic", Importer(IMPORTERS["mxnet"].read, "weights from the attic", ""))
    show("importers")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert [kind for kind in IMPORTERS if "UNVERIFIED" in lines[kind]] == ["attic"]
    assert "weights from the attic" in lines["attic"]


def test_wrong_use_is_named(tmp_path):
    with pytest.raises(MultiboxError, match="did you mean 'torchvision'"):
        import_file("torchvison", tmp_path / "x", tmp_path / "y.safetensors", [])
    with pytest.raises(MultiboxError, match="does not exist"):
        import_file("torchvision", tmp_path / "x", tmp_path / "y.safetensors", [])
    with pytest.raises(MultiboxError, match=r"ends in \.safetensors"):
        import_file("torchvision", tmp_path / "x", tmp_path / "y.pth", [])
