"""How good the weights are on held-out images: loss and mAP in one pass, computed as prediction computes."""

from typing import TYPE_CHECKING

import torch

from multibox.config import Config
from multibox.data.loading import AugmentedImages, in_order, load_batches
from multibox.evaluation.report import best_threshold
from multibox.evaluation.voc_metrics import mean, precision_recall
from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.prediction import quick_copy
from multibox.models.ssd import SSD
from multibox.postprocess import detect
from multibox.structures import Dataset, Detections
from multibox.thresholds import DEFAULT_THRESHOLD
from multibox.training.optimizer import known_batch_size

if TYPE_CHECKING:
    from multibox.training.reporter import Row


class Validation:
    """A split held out of training, decoded once and scored as often as asked."""

    def __init__(self, dataset: Dataset, config: Config, device: str) -> None:
        self.dataset = dataset
        self.config = config
        self.device = device
        self.per_cell = anchors_per_cell(config)
        self.images = AugmentedImages(dataset, config.model.input_size, ())
        self.per_class: dict[str, float | None] = {}
        """Of the weights scored last: average precision at IoU .5 of each class."""
        self.thresholds: tuple[float, ...] = ()
        """Of the weights scored last: for each class the score from which F1 at IoU .5 is best."""

    @torch.inference_mode()
    def score(self, model: SSD) -> "Row":
        """Return validation loss and mAP@0.5 and keep the thresholds of best F1.

        Computed in float32 whatever training computes in, by the copy that prediction runs: thresholds belong to the
        scores that `predict` will see. The network itself is put into evaluation mode and left there.
        """
        network = quick_copy(model.eval(), "float32")
        batches = in_order(len(self.dataset), known_batch_size(self.config.train))
        found: list[Detections] = []
        losses: list[torch.Tensor] = []
        for batch in load_batches(self.images, batches, 0, pin=False):
            batch = batch.to(self.device)
            outputs = network(batch.images)
            anchors = make_anchors(
                self.config.anchors, outputs.feature_shapes, self.config.model.input_size, self.device
            )
            targets = make_targets(
                anchors,
                batch.gt_xyxy,
                batch.gt_labels,
                self.config.matching,
                self.config.model,
                outputs,
                self.per_cell,
            )
            parts = multibox_loss(outputs, targets, self.config.loss, self.config.model)
            losses.append(parts.total * len(batch.names))
            found += detect(outputs, batch.sizes, self.config, self.dataset.class_names)
        loss = torch.stack(losses).sum().item() / len(self.dataset)
        curves = precision_recall(found, self.dataset, self.dataset.class_names)
        self.per_class = {name: curve.ap12 for name, curve in curves.items()}
        best = [best_threshold(curve) for curve in curves.values()]
        self.thresholds = tuple(DEFAULT_THRESHOLD if one is None else one["threshold"] for one in best)
        return {"val_loss": loss, "val_map50": mean(curve.ap12 for curve in curves.values())}
