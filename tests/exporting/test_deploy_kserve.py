"""`--to kserve`: the InferenceService against KServe's own Python models, and the repository that it points at."""

import re
import subprocess

import pytest

from multibox.exporting.folders import write_folder
from multibox.exporting.kserve import LONGEST, resource_name, service, storage


@pytest.fixture(scope="module")
def folder(picky_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("kserve") / "out"
    write_folder("kserve", picky_file, out, export=lambda file: None)
    return out


def test_it_names_the_model_that_lies_beside_it(folder):
    yaml = pytest.importorskip("yaml")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [
        ".multibox-export.json",
        "inference-service.yaml",
        "models/picky/1/model.onnx",
        "models/picky/config.pbtxt",
    ]
    written = yaml.safe_load((folder / "inference-service.yaml").read_text("utf-8"))
    model = written["spec"]["predictor"]["model"]
    assert written["metadata"]["name"] == "picky"
    assert model["readinessProbe"]["httpGet"] == {"path": "/v2/models/picky/ready", "port": 8080}
    assert model["protocolVersion"] == "v2"
    assert model["modelFormat"] == {"name": "onnx", "version": "1"}
    assert model["storageUri"] == storage("picky") == "pvc://multibox-models/picky"


@pytest.mark.parametrize("name", ["coco", "My Cells_v2", "2024-run", "猫", "-", "a" * 80, "ends.", "true", "1e3"])
def test_any_name_becomes_one_that_kubernetes_takes(name):
    yaml = pytest.importorskip("yaml")
    made = resource_name(name)
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= LONGEST
    assert yaml.safe_load(service(name))["metadata"]["name"] == made


CHECK = """
import sys
import kserve, kserve.models
import yaml
from kserve.constants import constants
from kubernetes.client import models as kubernetes

SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}

def check(value, kind, where):
    kind = kind.replace("List[", "list[").replace("Dict[", "dict(").replace("dict(str, str]", "dict(str, str)")
    if kind.startswith("list["):
        assert isinstance(value, list), where
        for each in value:
            check(each, kind[5:-1], where)
    elif kind.startswith("dict("):
        assert isinstance(value, dict), where
        for key, each in value.items():
            check(each, kind[5:-1].split(", ")[1], f"{where}.{key}")
    elif kind in SCALARS:
        assert isinstance(value, SCALARS[kind]), (where, value, kind)
    else:
        model = getattr(kserve, kind, None) or getattr(kserve.models, kind, None) or getattr(kubernetes, kind)
        known = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
        assert set(value) <= set(known), (where, set(value) - set(known))
        for key, each in value.items():
            check(each, known[key], f"{where}.{key}")
        # Its constructor refuses what lacks a required field
        names = {key: name for name, key in model.attribute_map.items()}
        model(**{names[key]: each for key, each in value.items()})

written = yaml.safe_load(open(sys.argv[1]))
check(written, "V1beta1InferenceService", "")
assert written["apiVersion"] == constants.KSERVE_V1BETA1
assert written["kind"] == constants.KSERVE_KIND_INFERENCESERVICE
try:
    check({"spec": {"predictor": {"modle": {}}}}, "V1beta1InferenceService", "")
except AssertionError:
    print("checked")
"""


@pytest.mark.slow
def test_it_obeys_the_types_of_kserves_models(folder, venv_with):
    python = venv_with("kserve", "kserve==0.21.0", "pillow") / "bin/python"
    command = [python, "-W", "ignore", "-c", CHECK, folder / "inference-service.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "checked", "a wrong key is noticed"
