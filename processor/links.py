"""Links in a dataset's folder on this machine: only those to files of the folder itself are followed."""

from __future__ import annotations

from pathlib import Path

from processor.inbox import is_marker


def is_followed(link: Path, root: Path) -> bool:
    """Whether a link leads to a file below `root`, the folder as it is called without links."""
    return link.is_file() and link.resolve().is_relative_to(root)


def links_left_out(folder: Path) -> list[str]:
    """The links that are not followed, by their names in the folder.

    They lead out of it, to another folder of it or nowhere: a folder must not be able to carry off any
    file of this machine, nor to have no end.
    """
    root = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts) or is_marker(path.name)
        if path.is_symlink() and not hidden and not is_followed(path, root):
            found.append(name.as_posix())
    return found


def why_left_out(links: list[str]) -> str:
    """What is said of them, in `check` and in `drop` alike."""
    lead = f"this link and {len(links) - 1:,} more lead" if len(links) > 1 else "this link leads"
    return f"{lead} out of the folder, to a folder or nowhere: left out; put the files themselves there"
