"""From a network's outputs to `Detections` in pixels of the original pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.config import Config
from multibox.inference.thresholds import just_below, reaching
from multibox.models.anchors import make_anchors
from multibox.postprocess import postprocess
from multibox.structures import Detections
from multibox.tensors import HeadOutputs


def detect(
    outputs: HeadOutputs,
    sizes: Sequence[tuple[int, int]],
    config: Config,
    names: tuple[str, ...],
    threshold: float | NDArray[np.float32] | None = None,
) -> list[Detections]:
    """Post-process a batch.

    Args:
        outputs: the network's answers.
        sizes: (width, height) of the original pictures.
        config: of the network.
        names: of the classes.
        threshold: scores lie above it (None: the config's); an array [C] holds the lowest score reported of each class.
    """
    least = threshold if isinstance(threshold, np.ndarray) else None
    above = config.post.score_threshold if threshold is None else threshold
    if isinstance(above, np.ndarray):
        above = just_below(float(above.min()))
    device = str(outputs.offsets.device)
    anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size, device)
    answer = postprocess(
        outputs,
        anchors,
        score=config.model.score,
        variances=config.model.variances,
        code=config.model.coder,
        score_threshold=above,
        nms_threshold=config.post.nms_threshold,
        nms_inclusive=config.post.nms_inclusive,
        pre_nms_topk=config.post.pre_nms_topk,
        max_detections=config.post.max_detections,
        max_per_class=0 if config.post.max_per_class == "none" else config.post.max_per_class,
        min_size=config.post.min_size,
        multi_label=config.post.multi_label,
        clip=config.post.clip,
    )
    scale = torch.tensor([(w, h, w, h) for w, h in sizes], dtype=torch.float32, device=answer.boxes_xyxy.device)
    boxes = (answer.boxes_xyxy * scale[:, None]).cpu().numpy()
    scores, labels, counts = answer.scores.cpu().numpy(), answer.labels.cpu().numpy(), answer.counts.cpu().tolist()
    found = [Detections(boxes[i, :n], scores[i, :n], labels[i, :n], names) for i, n in enumerate(counts)]
    return found if least is None else [reaching(one, least) for one in found]
