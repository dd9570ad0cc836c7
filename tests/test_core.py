"""The core, where torch and everything else of the extra `train` cannot be imported; and the public names."""

import subprocess
import sys
import textwrap

import multibox

BLOCK = """
import sys

class Absent:
    names = {"torch", "torchvision", "jaxtyping", "hotcoco", "matplotlib", "tensorboard", "defusedxml", "yaml"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code, *arguments):
    script = BLOCK + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_the_core_imports_without_torch():
    modules = (
        "errors files config presets structures data.images data.sprites plots.detections inference.results cli.main"
    )
    code = "import importlib\n" + "\n".join(f"importlib.import_module('multibox.{m}')" for m in modules.split())
    done = run(code + "\nassert 'torch' not in sys.modules\nprint('fine')")
    assert done.stdout == "fine\n", done.stderr


def test_the_core_makes_data_without_torch(tmp_path):
    code = """
        from multibox.data.sprites import make_sprites
        make_sprites(sys.argv[1], images=4, size=64)
    """
    done = run(code, str(tmp_path / "sprites"))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sprites").rglob("*.xml"))) == 4


def test_a_command_that_needs_torch_says_what_to_install(tmp_path):
    code = "from multibox.cli.main import main\nsys.argv = ['multibox', 'train', sys.argv[1]]\nmain()"
    done = run(code, str(tmp_path))
    assert done.returncode == 2
    assert "pip install 'multibox[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_public_names_import_and_are_all_there():
    for name in multibox.__all__:
        assert getattr(multibox, name) is not None
    assert dir(multibox) == sorted(multibox.__all__)


def test_importing_the_package_is_light():
    code = "import sys, multibox, multibox.cli.main; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
