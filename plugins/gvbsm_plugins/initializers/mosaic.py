"""RDED's images (Sun et al., arXiv 2312.03526): crops that a committee scores, stitched together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from gvbsm_plugins.augmentations.crops import ResizedCrop
from gvbsm_plugins.initializers.coresets import seed_of, shuffled
from gvbsm_registry import GvbsmError, Initializer, Source

if TYPE_CHECKING:
    from torch import Generator, Tensor

CHUNK = 64


class Mosaic(Initializer):
    """Crops of real images that pretrained backbones find typical of their class, factor × factor an image.

    For each class: `pool` random training images, `crops` random square crops of each. A crop is scored by
    the cross-entropy of the committee's mean logits for its class, at the size that it will have in the image
    and with the mean colour around it; each image keeps its best crop. Image r of a class is made of the
    factor² crops from r·factor² on, in the order of `pick`: "top" begins with the lowest cross-entropy, "low"
    with the highest, "medium" with the one in the middle, going outwards.
    """

    name = "mosaic"

    pool: int = Field(300, ge=1, description="how many random training images of a class are looked at")
    crops: int = Field(5, ge=1, description="random crops of each of them")
    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="smallest and largest share of the image's area"
    )
    factor: int = Field(1, ge=1, description="crops along each side of an image")
    pick: Literal["top", "medium", "low"] = Field(
        "top", description="begin with the most typical crops, those in the middle or the least typical"
    )
    committee: Literal["all", "first"] = Field("all", description="which pretrained backbones score")

    @field_validator("scale")
    @classmethod
    def _within_image(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] <= limits[1] <= 1:
            raise ValueError("must be two shares above 0 and up to 1, the smaller first")
        return limits

    def looks_at(self, per_class: int) -> int:
        return min(self.pool, per_class)

    def prepare(self, source: Source) -> dict[str, Tensor]:
        """Return each pool image's best crop, by class, from the lowest cross-entropy to the highest.

        indices: int64 [K, P], places in the training split, -1 after the last where a class has fewer;
        boxes: int64 [K, P, 4], (top, left, height, width); scores: float32 [K, P]. Raises GvbsmError if an
        image has fewer pixels than crops along a side.
        """
        import torch

        if self.factor > source.train.image_size:
            raise GvbsmError(
                f"synthesis.initializer {self.name!r}: factor {self.factor} is more than the "
                f"{source.train.image_size} pixels of an image's side; lower it"
            )
        truth = source.train.labels.cpu()
        shape = source.classes, min(self.pool, int(torch.bincount(truth, minlength=source.classes).max()))
        indices = torch.full(shape, -1)
        boxes = torch.zeros(*shape, 4, dtype=torch.int64)
        scores = torch.full(shape, torch.inf)
        for label in range(source.classes):
            members = (truth == label).nonzero().flatten()
            pool = members[shuffled(len(members), source, label)[: self.pool]]
            best, drawn = self._best_crops(pool, label, source)
            order = best.argsort(stable=True)
            count = len(pool)
            indices[label, :count], scores[label, :count] = pool[order], best[order]
            boxes[label, :count] = drawn[order]
        return {"indices": indices, "boxes": boxes, "scores": scores}

    def _best_crops(self, pool: Tensor, label: int, source: Source) -> tuple[Tensor, Tensor]:
        """Return the lowest cross-entropy of each image's crops, float32 [n], and its box, int64 [n, 4]."""
        import torch

        image_size = source.train.image_size
        generator = torch.Generator().manual_seed(seed_of(source, "crops", label))
        augmentation = ResizedCrop(scale=self.scale, ratio=(1, 1), flip=0)
        drawn = augmentation.draw(self.crops * len(pool), image_size, generator).boxes.long()
        boxes = drawn.reshape(len(pool), self.crops, 4)
        scores = torch.zeros(len(pool), self.crops)
        for rows in torch.arange(len(pool)).split(CHUNK):
            images = source.normalize(source.train.read(pool[rows]))
            for crop in range(self.crops):
                scores[rows, crop] = self._scores(images, boxes[rows, crop], label, source)
        best, which = scores.min(1)
        return best, boxes[torch.arange(len(pool)), which]

    def _scores(self, images: Tensor, boxes: Tensor, label: int, source: Source) -> Tensor:
        """Return the cross-entropy of a crop of each image, float32 [n] on the CPU."""
        import torch

        image_size = images.shape[-1]
        size = image_size // self.factor
        before = (image_size - size) // 2
        after = image_size - size - before
        pairs = zip(images, boxes.tolist(), strict=True)
        crops = torch.stack([_resized(image, box, size, size) for image, box in pairs])
        members = source.committee if self.committee == "all" else source.committee[:1]
        with torch.no_grad():
            seen = torch.nn.functional.pad(crops, (before, after, before, after))
            logits = torch.stack([member.module(seen).float() for member in members]).mean(0)
        return -logits.log_softmax(1)[:, label].cpu()

    def images(self, labels: Tensor, ranks: Tensor, source: Source, generator: Generator) -> Tensor:
        """Return the mosaics; raises GvbsmError if a class has too few images in its pool."""
        import torch

        made = []
        for label, rank in zip(labels.tolist(), ranks.tolist(), strict=True):
            indices = source.prepared["indices"][label]
            order = self._order(int((indices >= 0).sum()))
            cells = order[rank * self.factor**2 : (rank + 1) * self.factor**2]
            if len(cells) < self.factor**2:
                raise GvbsmError(
                    f"synthesis.initializer {self.name!r}: class {source.train.classes[label]!r} has a pool "
                    f"of {len(order)} images, too few for {rank + 1} of {self.factor}×{self.factor} crops; "
                    "raise pool, or lower factor or synthesis.ipc"
                )
            patches = source.normalize(source.train.read(indices[cells]))
            made.append(self._stitched(patches, source.prepared["boxes"][label][cells].tolist()))
        return torch.stack(made)

    def _order(self, count: int) -> Tensor:
        """Return the places of a class's crops in the order in which images take them, int64 [count]."""
        import torch

        places = torch.arange(count)
        if self.pick == "medium":
            return (2 * places - (count - 1)).abs().argsort(stable=True)
        return places if self.pick == "top" else places.flip(0)

    def _stitched(self, images: Tensor, boxes: list[list[int]]) -> Tensor:
        """Return one image [C, S, S] of the images' boxes, row by row; the first cells get what is left."""
        import torch

        size, left_over = divmod(images.shape[-1], self.factor)
        sides = [size + (cell < left_over) for cell in range(self.factor)]
        rows = []
        for row, height in enumerate(sides):
            cells = []
            for column, width in enumerate(sides):
                number = row * self.factor + column
                cells.append(_resized(images[number], boxes[number], height, width))
            rows.append(torch.cat(cells, 2))
        return torch.cat(rows, 1)


def _resized(image: Tensor, box: list[int], height: int, width: int) -> Tensor:
    """Return a box (top, left, height, width) of an image, resized: bilinear with antialiasing."""
    from torch.nn.functional import interpolate

    top, left, tall, wide = box
    part = image[None, :, top : top + tall, left : left + wide]
    return interpolate(part, (height, width), mode="bilinear", antialias=True)[0]
