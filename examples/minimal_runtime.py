"""An exported detector without multibox and without PyTorch: numpy, onnxruntime and Pillow.

python minimal_runtime.py model.onnx photo.jpg     prints name, score and box (x1, y1, x2, y2) of what is in the photo
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, photo: str) -> None:
    """Open the model, show it the photo, print what it found."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["multibox"])
    # Of each class, scores from here on are reported
    least = np.array(about["post"]["thresholds"] or [0.3] * len(about["names"]), np.float32)

    with Image.open(photo) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    images = np.asarray(upright)[None]  # uint8 [1, height, width, 3], of any size
    threshold = np.nextafter(least.min(), np.float32(0))  # the graph keeps scores above it
    post = about["post"]
    feeds = {
        "images": images,
        "score_threshold": np.array(threshold),
        "nms_threshold": np.array(post["nms_threshold"], np.float32),
        "max_detections": np.array(post["max_detections"]),
    }
    boxes, scores, labels, counts = session.run(["boxes", "scores", "labels", "counts"], feeds)

    for box, score, label in list(zip(boxes[0], scores[0], labels[0], strict=True))[: counts[0]]:
        if score >= least[label]:
            print(about["names"][label], f"{score:.2f}", *(f"{side:.1f}" for side in box))


if __name__ == "__main__":
    main(*sys.argv[1:])
