"""What every importer must do; a new entry of the table is tested by being there."""

import pytest
import torch

from multibox.errors import MultiboxError
from multibox.importers import IMPORTERS, import_file


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


@pytest.mark.parametrize("kind", IMPORTERS)
def test_it_says_what_it_reads_and_what_verified_it(kind):
    assert IMPORTERS[kind].what
    assert isinstance(IMPORTERS[kind].verified, str)


def test_wrong_use_is_named(tmp_path):
    with pytest.raises(MultiboxError, match="did you mean 'torchvision'"):
        import_file("torchvison", tmp_path / "x", tmp_path / "y.safetensors", [])
    with pytest.raises(MultiboxError, match="does not exist"):
        import_file("torchvision", tmp_path / "x", tmp_path / "y.safetensors", [])
    with pytest.raises(MultiboxError, match=r"ends in \.safetensors"):
        import_file("torchvision", tmp_path / "x", tmp_path / "y.pth", [])
