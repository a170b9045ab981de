"""Images in tar files, compressed or not; folders inside of them mean what they mean in a folder of image files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from dcdist.data.image_folder import find_layout, labelled_row
from dcdist.data.location import IMAGE_SUFFIXES, Location
from dcdist.data.types import ImageRow
from dcdist.errors import UsageError


def tar_rows(location: Location, split: str | None = None) -> Iterator[ImageRow]:
    """The images of one tar file, or of the tar files of a folder, in the order in which they are stored.

    Every file is gone through twice, for the layout of all names first.

    Raises:
        UsageError: not a tar file, a truncated one, or none of its members is an image.
    """
    names: list[str] = []
    for entry in location.files:
        with location.local_file(entry.name) as path:
            names.extend(name for name, _ in _members(path, location.path_of(entry.name), with_content=False))
    if not names:
        raise UsageError(f"{location.url} holds no images: expected members named {', '.join(IMAGE_SUFFIXES)}")
    layout = find_layout(names, split)
    for entry in location.files:
        with location.local_file(entry.name) as path:
            for name, image in _members(path, location.path_of(entry.name), with_content=True):
                yield labelled_row(layout, name, image)


def _members(path: Path, name: str, with_content: bool) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                key = member.name.removeprefix("./")
                hidden = any(part.startswith(".") for part in key.split("/"))
                if member.isfile() and not hidden and key.lower().endswith(IMAGE_SUFFIXES):
                    content = archive.extractfile(member) if with_content else None
                    yield key, content.read() if content is not None else b""
                archive.members.clear()  # type: ignore[attr-defined]  # else all headers stay in memory
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{name} is not a readable tar file: {error}") from error
