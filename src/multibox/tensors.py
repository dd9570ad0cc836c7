"""What flows between the parts on the device, as torch tensors."""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from multibox.structures import Size


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size with their labels, ready for a step."""

    images: UInt8[Tensor, "b 3 h w"]
    """RGB, 0 to 255; normalising is the network's first operation."""
    gt_xyxy: Float[Tensor, "b g 4"]
    """0 to 1 of the network's input; rows past an image's objects are -1."""
    gt_labels: Int[Tensor, "b g"]
    """0-based class; -1 pads, and an image without objects is all -1."""
    image_names: list[str]
    """Name of each image in its data set."""
    sizes: list[Size]
    """Of each original image."""
    lost_boxes: int = 0
    """Objects of these images that augmentation cut off or hid too far to ask for them."""
    gt_rows: Int[Tensor, "b g"] | None = None
    """Row of each object in the columns of its data set; -1 pads; None where there is none. Stays on the host."""
    image_rows: Int[Tensor, " b"] | None = None
    """Place of each image in its data set: of images mixed into one, that of the first. Stays on the host."""

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from where a GPU copies while the host goes on."""
        return replace(
            self,
            images=self.images.pin_memory(),
            gt_xyxy=self.gt_xyxy.pin_memory(),
            gt_labels=self.gt_labels.pin_memory(),
        )

    def to(self, device: str) -> "Batch":
        """Return the batch on `device`, copying without waiting; the rows are read on the host alone and stay."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            gt_xyxy=self.gt_xyxy.to(device, non_blocking=True),
            gt_labels=self.gt_labels.to(device, non_blocking=True),
        )


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """A network's raw answer for every anchor."""

    logits: Float[Tensor, "b a k"]
    """K = classes + 1 with background 0 for softmax heads, K = classes for sigmoid heads."""
    offsets: Float[Tensor, "b a 4"]
    """cx, cy, w, h relative to the anchor, over the variances."""
    feature_shapes: tuple[Size, ...]
    """Of each feature map, in the order in which the anchors stand."""

    def detach(self) -> "HeadOutputs":
        """Return the same numbers without their history."""
        return HeadOutputs(self.logits.detach(), self.offsets.detach(), self.feature_shapes)


@dataclass(frozen=True, eq=False)
class LossParts:
    """A loss and what it is made of; the first five are scalars on the device."""

    total: Float[Tensor, ""]
    """What is differentiated: classification + localization + l2."""
    classification: Float[Tensor, ""]
    localization: Float[Tensor, ""]
    l2: Float[Tensor, ""]
    """The L2 penalty inside the loss (HiKapok); 0 where the optimiser decays the weights."""
    positives: Int[Tensor, ""]
    """Anchors matched to an object in this batch."""
    selected: Bool[Tensor, "b a"]
    """Anchors whose class took part: positives, and mined negatives or all of them."""
    class_losses: Float[Tensor, "b a"]
    """Classification loss of every anchor, selected or not; detached, before any divisor or weight."""
    box_losses: Float[Tensor, " p"]
    """Localisation loss of every positive, in the order of `Targets.anchor`; detached, before any divisor or weight."""
