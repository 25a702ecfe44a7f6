"""What a look over a data set may find: a level, what it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hardpix.data.doctor_sums import Hit

LEVELS = ("error", "warning", "note")


class Kind(NamedTuple):
    """``what`` may hold {frames} ("3 of 105 frames"), {split} and what the finding's maker gives besides."""

    level: str
    what: str
    todo: str


RESTORE = "Unpack or download the files again, or take these frames out of the split."
ONE_BY_ONE = "Mend what each sentence says, or take these frames out of the split."

KINDS = {
    "split-closed": Kind(
        "error",
        "The split cannot be opened: {reason}.",
        "Mend that, or name other splits with --splits (in training: data.train_split, data.val_split and "
        "data.test_split).",
    ),
    "split-empty": Kind("error", "The split has no frames.", "Check data.source.root and the list of the split."),
    "image-missing": Kind("error", "The image file is missing for {frames}.", RESTORE),
    "label-missing": Kind("error", "The label file is missing for {frames}.", RESTORE),
    "depth-missing": Kind("error", "The depth file is missing for {frames}.", RESTORE),
    "lossy": Kind(
        "error",
        "A label or depth file is a JPEG for {frames}.",
        "Export these labels and depths again as PNG: in a JPEG the numbers at every edge are lost.",
    ),
    "image-unreadable": Kind("error", "The image cannot be decoded for {frames}.", RESTORE),
    "label-unreadable": Kind("error", "The label cannot be decoded for {frames}.", RESTORE),
    "depth-unreadable": Kind("error", "The depth cannot be decoded for {frames}.", RESTORE),
    "frame-unreadable": Kind("error", "Loading fails for {frames}.", ONE_BY_ONE),
    "camera-unreadable": Kind("error", "The camera matrix cannot be read for {frames}.", RESTORE),
    "worker-died": Kind(
        "error",
        "The process that looked at it was killed for {frames}.",
        "The frame may need more memory than there is: look at its file's size, or use fewer --workers.",
    ),
    "size-mismatch": Kind(
        "error",
        "Image, label and depth do not have one size for {frames}.",
        "Export them again at one size; labels and depth without interpolation.",
    ),
    "label-values": Kind(
        "error",
        "The label is not one of class numbers or colours of this data set for {frames}.",
        "Correct the labels, or the class list or label map in the configuration.",
    ),
    "depth-values": Kind(
        "error",
        "The depth file does not hold depth as the data set stores it for {frames}.",
        "Export the depth again, or correct its coding in the configuration.",
    ),
    "name-twice": Kind(
        "error",
        "The frame's name is used more than once in the split by {frames}.",
        "Rename files: predictions and pictures are stored under the names and would overwrite each other.",
    ),
    "leak": Kind(
        "error",
        "The same pixels as in a training frame are found in {frames}.",
        "Take them out of one of the two splits: scores on frames that were trained on are too good.",
    ),
    "twice-in-evaluation": Kind(
        "warning",
        "The same pixels as in another evaluation split are found in {frames}.",
        "Take them out of one of the two splits: choices made on one are no longer blind to the other.",
    ),
    "twice": Kind(
        "warning",
        "The same pixels as in an earlier frame of the split are found in {frames}.",
        "Keep one of each: the others weigh the picture more than once in training or in the score.",
    ),
    "unlabelled": Kind(
        "error",
        "No label belongs to {frames}.",
        "Leave these frames out of the split: training and scores need every label.",
    ),
    "all-unlabelled": Kind(
        "warning",
        "No frame of the split has a label.",
        "It can be predicted on only; for scores name another split (data.val_split, data.test_split).",
    ),
    "label-void": Kind(
        "warning",
        "Every pixel is unlabelled in {frames}.",
        "Leave them out, or check that their labels were exported: nothing is learned from them.",
    ),
    "void-mostly": Kind(
        "warning",
        "{share} of the label pixels are void.",
        "If that was not intended, check which label values are mapped to void.",
    ),
    "class-only-in-evaluation": Kind(
        "warning",
        "Classes occur here of which no pixel was found in training: {classes}.",
        "Add training frames that show it; until then it scores 0 and draws the mean over classes down.",
    ),
    "class-single": Kind(
        "error",
        "{held} is the only class in all splits, though {classes} too are declared: every score would be 100 %.",
        "Check the class list and the label values{advice}.",
    ),
    "class-never": Kind(
        "warning",
        "Classes have no pixel in any of the splits: {classes}.",
        "Check the class list and the label values{advice}; such a class has no score and takes no part in the mean.",
    ),
    "image-constant": Kind(
        "warning", "All pixels have one colour in {frames}.", "Look at the files: an export may have failed."
    ),
    "image-grey": Kind(
        "note", "The image has no colour in {frames}.", "Nothing, if they should be grey; they are read as RGB."
    ),
    "image-turned": Kind(
        "note",
        "An EXIF orientation is applied to the image of {frames}.",
        "Check in the contact sheet that labels and depth are stored upright; if not, remove the tag.",
    ),
    "image-transparent": Kind(
        "note",
        "Transparency is dropped from the image of {frames}.",
        "Nothing, if the colours below it are the picture; else blend the images before.",
    ),
    "image-deep": Kind(
        "note",
        "The image has more than 8 bits, read by data.source.image_range, in {frames}.",
        "Check in the contact sheet that black and white are what they should be.",
    ),
    "image-sizes": Kind(
        "note",
        "The images have {sizes} different sizes, from {least} to {largest} pixels.",
        "Evaluate one by one: data.eval_batch_size=1.",
    ),
    "image-statistics": Kind(
        "note",
        "Mean {mean} and deviation {std} of the channels are far from the normalisation's {own_mean} and {own_std}.",
        "Training copes, but look whether the images are what they should be (exposure, channels in RGB order).",
    ),
    "depth-empty": Kind("warning", "No pixel has a depth reading in {frames}.", "Look at the depth files."),
    "depth-constant": Kind("warning", "The depth is one number in {frames}.", "Look at the depth files."),
    "depth-beyond": Kind(
        "warning",
        "Depth beyond the data set's {depth_max:g} m occurs in {frames} ({share} of all readings).",
        "Check the unit of the depth files; else raise depth_max: methods with a fixed range end there.",
    ),
    "depth-edge": Kind(
        "note",
        "A few readings lie beyond the data set's {depth_max:g} m in {frames} ({share} of all readings).",
        "Nothing: methods with a fixed range of depth end there.",
    ),
    "depth-unbounded": Kind(
        "note", "The data set states no depth_max.", "Give it if a depth method asks for it: {largest:.4g} m occur."
    ),
    "camera-outside": Kind(
        "error",
        "The camera's principal point lies outside the picture for {frames}.",
        "Give the camera matrix in pixels of the images as stored, and in the order fx 0 cx, 0 fy cy, 0 0 1.",
    ),
    "camera-partly": Kind(
        "warning",
        "The camera is known for only {frames}.",
        "Add the missing camera files, or methods that use geometry cannot train on this split.",
    ),
    "label-stray": Kind(
        "note",
        "{count} label or depth files belong to no frame.",
        "Nothing, if their images were left out on purpose; else restore the images or mend the names.",
    ),
    "left-out": Kind(
        "warning",
        "Files are not read: {sentence}.",
        "Nothing, if they are no frames; else convert pictures to PNG, and give them the names of the layout.",
    ),
    "same-split": Kind(
        "note",
        "Splits {other} and {split} are the same frames; they were looked at once, as {other}.",
        "Say so beside the scores: what is chosen on one of them is chosen on the other too.",
    ),
    "remark": Kind("note", "{remark}.", "Nothing, if it is what you want; the setting is in conf/data."),
    "limited": Kind(
        "note",
        "Only {frames} were looked at.",
        "Run it without --limit before you rely on what is not found here.",
    ),
}  # fmt: skip


@dataclass
class Finding:
    """One thing that was found in one split (None: in the data set)."""

    code: str
    split: str | None
    count: int
    what: str
    hits: list[Hit] = field(default_factory=list)
    todo: str = ""

    @property
    def level(self) -> str:
        return KINDS[self.code].level

    def to_json(self) -> dict[str, Any]:
        examples = [{"name": hit.name, "index": hit.index, "detail": hit.sentence} for hit in self.hits]
        return {
            "level": self.level, "code": self.code, "split": self.split, "count": self.count,
            "what": self.what, "what_to_do": self.todo, "frames": examples,
        }  # fmt: skip


def finding(
    code: str,
    split: str | None,
    hits: Iterable[Hit] = (),
    *,
    of: int = 0,
    count: int | None = None,
    **words: Any,
) -> Finding:
    """A finding with its sentences filled in; ``of`` is the number of frames that were looked at."""
    kept = sorted(hits, key=lambda hit: hit.index)
    number = len({hit.index for hit in kept}) if count is None else count
    words = {"split": split, "count": number, "frames": f"{number} of {of} frames", **words}
    kind = KINDS[code]
    return Finding(code, split, number, kind.what.format(**words), kept, kind.todo.format(**words))


def in_order(findings: Iterable[Finding], splits: Sequence[str]) -> list[Finding]:
    """Errors first; then by code, in the order of :data:`KINDS`, and by split."""
    codes, places = list(KINDS), {split: place for place, split in enumerate(splits)}
    return sorted(
        findings, key=lambda f: (LEVELS.index(f.level), codes.index(f.code), places.get(f.split or "", -1))
    )


def percent(share: float) -> str:
    """``0.0123`` -> ``1.2 %``; what is less than a hundredth of a percent reads as that."""
    return f"{100 * share:.3g} %" if share == 0 or share >= 1e-4 else "less than 0.01 %"
