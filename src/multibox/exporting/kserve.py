"""KServe on Kubernetes: an InferenceService for its Triton runtime, and the model repository to copy. No torch here.

Triton rather than a container of our own: KServe brings the image, so nothing has to be built and pushed to a registry.
"""

import json
import re
from pathlib import Path

from multibox.exporting.fixed_limits import served_name
from multibox.exporting.triton import write_triton

LONGEST = 40
"""Letters of a Kubernetes name: 63 are allowed, and KServe appends words of its own."""
_SERVICE = """\
# Written by `multibox export --to kserve`. Copy the folder `models` to where storageUri points, then
# `kubectl apply -f inference-service.yaml`. pvc://CLAIM/FOLDER, s3://, gs:// and https:// are possible, too.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {resource}
spec:
  predictor:
    minReplicas: 1
    model:
      modelFormat:
        name: onnx
        version: "1"
      # Named, because KServe's OpenVINO runtime takes ONNX, too, but not this folder
      runtime: kserve-tritonserver
      protocolVersion: v2
      storageUri: {storage}
      # Ready when the model is loaded and warmed up, not when the server answers
      readinessProbe:
        httpGet:
          path: {ready}
          port: 8080
        periodSeconds: 5
        failureThreshold: 3
      resources:
        requests:
          cpu: "1"
          memory: 2Gi
        limits:
          cpu: "2"
          memory: 4Gi
          # nvidia.com/gpu: "1"
"""


def write_kserve(model: Path, folder: Path, *, name: str, threshold: float | None = None) -> list[str]:
    """Write inference-service.yaml and the model repository `models`, and return lines to print.

    Args:
        model: a .onnx file of dialect plain.
        folder: what to fill.
        name: of the model.
        threshold: lowest score that the model reports; None takes each class's own.

    Raises:
        MissingExtraError: the package onnx is not installed.
        WeightsError: the model with its limits built in differs from the plain one.
    """
    repository = folder / "models"
    repository.mkdir()
    lines = write_triton(model, repository, name=name, threshold=threshold)
    (folder / "inference-service.yaml").write_text(service(name), "utf-8")
    return [*lines, f"storageUri in inference-service.yaml is {storage(name)}: make it the place of the folder models"]


def service(name: str) -> str:
    """Return the text of the InferenceService for a model of this name."""
    return _SERVICE.format(
        resource=json.dumps(resource_name(name)),
        storage=json.dumps(storage(name)),
        ready=json.dumps(f"/v2/models/{served_name(name)}/ready"),
    )


def storage(name: str) -> str:
    """Return where the service looks for the repository until somebody edits it: a folder on a volume."""
    return f"pvc://multibox-models/{resource_name(name)}"


def resource_name(name: str) -> str:
    """Return a name as Kubernetes takes it: small letters, digits and hyphens, a letter first, none of them last."""
    kept = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    kept = kept if kept[:1].isalpha() else f"model-{kept}"
    return kept[:LONGEST].strip("-")
