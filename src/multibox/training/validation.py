"""How good the weights are on held-out images: loss and mAP in one pass, computed as prediction computes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from multibox.config import Config
from multibox.data.decoded import DecodedImages
from multibox.data.loading import AugmentedImages, choose_workers, in_order, load_batches, prepares_between
from multibox.data.pixels import as_colour
from multibox.evaluation.report import best_threshold
from multibox.evaluation.voc_metrics import mean, precision_recall
from multibox.models.anchor_layout import anchors_for
from multibox.models.prediction import Folds, convolutions_before_norms, quick_copy
from multibox.models.ssd import SSD
from multibox.postprocess import detect
from multibox.structures import Dataset, Detections, Size
from multibox.thresholds import DEFAULT_THRESHOLD
from multibox.training.optimizer import known_batch_size
from multibox.training.ranks import ALONE, Ranks, own_slice
from multibox.training.samples import Samples
from multibox.training.statistics import Summaries, detection_statistics
from multibox.training.step import compute_loss
from multibox.training.stopping import EndNow

if TYPE_CHECKING:
    from multibox.training.metric_files import Row


class Found(NamedTuple):
    """What a validation found in images that follow each other."""

    detections: list[Detections]
    sizes: list[Size]
    losses: list[torch.Tensor]
    """Of each batch, times its images."""


class Validation:
    """A split held out of training, decoded once and scored as often as asked.

    Args:
        dataset: the split.
        config: of the run.
        device: where to compute.
        decoded: its images at the network's size, through a store; None decodes them in each validation.
        ranks: the processes that validate together, each some of the batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        device: str,
        decoded: DecodedImages | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.dataset = dataset
        self.config = config
        self.device = device
        size = Size(*config.model.input_size)
        anew = DecodedImages(dataset, size, exact=True, background=as_colour(config.model.background))
        self.images = AugmentedImages(dataset, size, (), decoded=decoded or anew)
        self.folds: Folds = []
        self.per_class: dict[str, float | None] = {}
        """Average precision at IoU 0.5 of each class, of the weights scored last."""
        self.thresholds: tuple[float, ...] = ()
        """Score of the best F1 at IoU 0.5 for each class, of the weights scored last."""
        self.detections: list[Detections] = []
        """In each image, of the weights scored last."""
        self.sizes: list[Size] = []
        """Of each image."""
        self.samples = Samples(dataset)

    @torch.inference_mode()
    def score(self, model: SSD, tick: Callable[[], None] = lambda: None) -> "Row":
        """Return validation loss and mAP@0.5, and keep the thresholds of best F1.

        Computes in float32 whatever training computes in, by the copy of the network that prediction runs: thresholds
        belong to the scores that `predict` will see. The network itself is left in evaluation mode.
        `tick` is called after every batch.
        """
        # Found once: the names stay, and finding them takes as long as validating several images
        self.folds = self.folds or convolutions_before_norms(model.eval())
        network = quick_copy(model.eval(), "float32", folds=self.folds)
        class_names = self.dataset.class_names
        found, ended = Found([], [], []), False
        try:
            self._detect(network, found, tick)
        except EndNow:
            if self.ranks.count == 1:
                raise
            # The others wait for what this process found
            ended = True
        losses = self._gather(found, ended)
        detections = self.detections
        curves = precision_recall(detections, self.dataset, class_names)
        self.per_class = {name: curve.ap12 for name, curve in curves.items()}
        best = [best_threshold(curve) for curve in curves.values()]
        self.thresholds = tuple(DEFAULT_THRESHOLD if one is None else one["threshold"] for one in best)
        loss = torch.stack(losses).sum().item() / len(self.dataset)
        return {"val_loss": loss, "val_map50": mean(self.per_class.values())}

    def _detect(self, network: SSD, found: "Found", tick: Callable[[], None]) -> None:
        """Fill `found` from this process's batches."""
        asked = self.config.train.workers
        workers, between = choose_workers(asked, self.device), prepares_between(asked, self.device)
        batches = in_order(len(self.dataset), known_batch_size(self.config.train))
        own = batches[own_slice(self.ranks, len(batches))]
        for batch in load_batches(self.images, own, workers, pin=self.device != "cpu", between=between):
            self.samples.take(batch)
            outputs, _, parts = compute_loss(network, batch.to(self.device), self.config)
            found.losses.append(parts.total * len(batch.image_names))
            anchors = anchors_for(outputs, self.config)
            found.detections.extend(detect(outputs, anchors, batch.sizes, self.config, self.dataset.class_names))
            found.sizes.extend(batch.sizes)
            tick()

    def _gather(self, found: "Found", ended: bool) -> list[torch.Tensor]:
        """Keep what all processes found, in the order of the images; return their losses, batch by batch.

        Raises:
            EndNow: one of them was asked to end.
        """
        if self.ranks.count > 1:
            own = list(torch.stack(found.losses).cpu().unbind()) if found.losses else []
            pixels = {} if self.detections else self.samples.pixels
            parts = self.ranks.gather((found._replace(losses=own), pixels, ended))
            if any(ended for _, _, ended in parts):
                raise EndNow
            columns: list[list[Any]] = [[one for part, _, _ in parts for one in part[place]] for place in range(3)]
            found = Found(*columns)
            for _, pixels, _ in parts:
                self.samples.pixels |= pixels
        self.detections, self.sizes = found.detections, found.sizes
        return found.losses

    def sample_sheet(self) -> Image.Image:
        """Return a few images with what was found in them last, at the thresholds found with it."""
        return self.samples.sheet(self.detections, self.thresholds)

    def statistics(self) -> Summaries:
        """Return the statistics of what was found last, at the thresholds found with it."""
        return detection_statistics(self.detections, self.sizes, self.thresholds)
