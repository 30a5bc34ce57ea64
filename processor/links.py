"""What is of a dataset's folder on this machine: of links only those to files of the folder itself."""

from __future__ import annotations

from pathlib import Path, PurePath

from processor.inbox import is_marker


def is_own_file(path: Path, root: Path) -> bool:
    """Whether it is a file of a folder, or a link to one: `root` is the folder as it is called without
    links. Only a link can lead out, for `rglob` enters no linked folders.
    """
    return path.is_file() and (not path.is_symlink() or path.resolve().is_relative_to(root))


def is_hidden(name: PurePath) -> bool:
    """Whether what has this name in a folder is no data: hidden, a marker, or litter."""
    return any(part.startswith(".") for part in name.parts) or is_marker(name.name)


def links_left_out(folder: Path) -> list[str]:
    """The links that are not followed, by their names in the folder.

    They lead out of it, to another folder of it or nowhere: a folder must not be able to carry off any
    file of this machine, nor to have no end.
    """
    root = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() and not is_hidden(name) and not is_own_file(path, root):
            found.append(name.as_posix())
    return found


def why_left_out(links: list[str]) -> str:
    """What is said of them, in `check` and in `drop` alike."""
    lead = f"this link and {len(links) - 1:,} more lead" if len(links) > 1 else "this link leads"
    return f"{lead} out of the folder, to a folder or nowhere: left out; put the files themselves there"
