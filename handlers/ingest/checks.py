"""What must be right about a dataset as a whole before a GPU is rented for it. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from handlers.ingest.options import DatasetOptions
from handlers.ingest.records import DatasetFile
from handlers.ingest.report import Report
from handlers.train.options import TrainOptions

FEW: Final = 10
"""Fewer examples than this train something, but seldom what was wanted."""
_FAR_FROM_SQUARE: Final = 3.0
_NEAR_BITS: Final = 3
_BAND_BITS: Final = 16
_MAX_NAME_BYTES: Final = 255
"""Of a file or folder on a disk."""
_MAX_STEM_BYTES: Final = 200
"""The trainer's caches are called after the stem, with a hash and a suffix."""
_NEAR_COLOUR: Final = 24


def check_set(report: Report, files: Sequence[DatasetFile], options: DatasetOptions, *, trigger: str) -> None:
    """Add what is wrong with these files together to a report.

    Args:
        trigger: the word that captions should have.
    """
    examples = [file for file in files if file.kind != "caption"]
    captions = {file.stem: file for file in files if file.kind == "caption"}
    report.pictures = sum(file.kind == "picture" for file in files)
    report.videos = len(examples) - report.pictures
    report.captions = len(captions)
    report.sizes = Counter(f"{file.width}x{file.height}" for file in examples if file.width)
    if len(examples) < options.min_images and not report.errors:
        report.error(f"{len(examples)} pictures to train on; at least {options.min_images} are needed")
    elif len(examples) < FEW:
        report.warn(f"only {len(examples)} pictures to train on; {FEW} to 50 give better results")
    if report.videos and (why := options.why_no_videos()):
        for file in examples:
            if file.kind == "video":
                report.error(why, file.name)
    _check_names(report, files)
    _check_stems(report, files)
    _check_captions(report, examples, captions, trigger)
    _check_sizes(report, examples, options.train_options())
    _check_duplicates(report, examples)


def _check_names(report: Report, files: Sequence[DatasetFile]) -> None:
    """A store takes longer names than the disk on which the trainer reads them."""
    for file in files:
        path = PurePosixPath(file.name)
        longest = max(len(part.encode()) for part in path.parts)
        if longest > _MAX_NAME_BYTES or len(path.stem.encode()) > _MAX_STEM_BYTES:
            report.error(
                f"has too long a name: at most {_MAX_STEM_BYTES} bytes before the suffix, and "
                f"{_MAX_NAME_BYTES} a folder",
                file.name,
            )


def _check_stems(report: Report, files: Sequence[DatasetFile]) -> None:
    """Two pictures that share a caption's name, or names that differ in case alone."""
    by_stem: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for file in files:
        by_stem[file.stem.casefold(), file.kind == "caption"].append(file.name)
    for names in by_stem.values():
        if len(names) > 1:
            report.error(f"has the same stem as {', '.join(names[1:])}; rename one", names[0])


def _check_captions(
    report: Report, examples: Sequence[DatasetFile], captions: dict[str, DatasetFile], trigger: str
) -> None:
    stems = {file.stem for file in examples}
    for stem, caption in captions.items():
        if stem not in stems:
            report.warn("belongs to no picture of that name", caption.name)
        elif not caption.caption:
            report.warn(f"is empty; {trigger!r} will stand for it", caption.name)
        elif trigger.casefold() not in caption.caption.casefold() and "[trigger]" not in caption.caption:
            report.warn(f"lacks the trigger word {trigger!r}; the trainer adds it", caption.name)
    bare = [file.name for file in examples if file.stem not in captions]
    for name in bare:
        report.warn(f"has no caption; {trigger!r} will stand for it", name)


def _check_sizes(report: Report, examples: Sequence[DatasetFile], options: TrainOptions) -> None:
    """Against the chosen resolutions: the trainer never enlarges."""
    wanted = max(options.resolution)
    for file in examples:
        if not file.width:
            continue
        if file.width * file.height < wanted * wanted:
            report.warn(f"{file.width}x{file.height} is less than {wanted}x{wanted} asked for", file.name)
        if max(file.width, file.height) > _FAR_FROM_SQUARE * min(file.width, file.height):
            report.warn(f"{file.width}x{file.height} is very long; much of it is cropped", file.name)


def _check_duplicates(report: Report, examples: Sequence[DatasetFile]) -> None:
    first: dict[str, str] = {}
    unlike: list[DatasetFile] = []
    for file in examples:
        if (other := first.setdefault(file.sha256, file.name)) != file.name:
            report.warn(f"is the same file as {other}", file.name)
        else:
            unlike.append(file)
    for one, other in near_duplicates(unlike):
        report.warn(f"looks nearly like {one}", other)


def near_duplicates(files: Sequence[DatasetFile]) -> list[tuple[str, str]]:
    """Pairs of pictures that look nearly alike: each later one with the first it resembles.

    Hashes at most 3 bits apart agree in one of four 16-bit bands, so that only pictures
    that share a band are compared; ten thousand take under a second.
    """
    bands: dict[tuple[int, int], list[DatasetFile]] = defaultdict(list)
    pairs = []
    for file in files:
        if file.look is None:
            continue
        keys = [(band, file.look >> band * _BAND_BITS & 0xFFFF) for band in range(4)]
        match = next((other for key in keys for other in bands[key][:_BUCKET] if _alike(file, other)), None)
        if match is not None:
            pairs.append((match.name, file.name))
            continue
        for key in keys:
            bands[key].append(file)
    return pairs


_BUCKET: Final = 200
"""Pictures compared per band: flat ones share bands by the thousand without being alike."""


def _alike(one: DatasetFile, other: DatasetFile) -> bool:
    if one.look is None or other.look is None or (one.look ^ other.look).bit_count() > _NEAR_BITS:
        return False
    return all(abs(a - b) <= _NEAR_COLOUR for a, b in zip(one.colour, other.colour, strict=True))
