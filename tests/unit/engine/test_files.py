"""Names of saved files, and the rule that nothing leaves its folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.engine.files import Folders, inside, save_path


def test_counter_follows_the_highest_of_its_prefix(tmp_path: Path) -> None:
    """Others' files and gaps do not matter."""
    for name in ("a_00001_.png", "a_00007_.png", "ab_00009_.png", "a_x_.png", "a_0012.txt.png", "a"):
        (tmp_path / name).touch()
    assert save_path(tmp_path, "a", 1, 1).name(0, ".png") == "a_00008_.png"
    assert save_path(tmp_path, "a", 1, 1).name(3, ".webp") == "a_00011_.webp"
    assert save_path(tmp_path, "b", 1, 1).name(0, ".png") == "b_00001_.png"


def test_prefix_may_name_a_folder_and_values(tmp_path: Path) -> None:
    """%width%, %height% and the date are filled in; the batch number per file."""
    target = save_path(tmp_path, "sub/%year%-%month%/%width%x%height%_%batch_num%", 64, 48)
    assert re.fullmatch(r"sub/\d{4}-\d{2}", target.subfolder)
    assert target.folder.is_dir()
    assert target.name(1, ".png", batch_number=1) == "64x48_1_00002_.png"


@pytest.mark.parametrize("prefix", ["../x", "a/../../x", "/abs/x", "../../../escape"])
def test_prefix_that_leaves_the_folder_is_refused(tmp_path: Path, prefix: str) -> None:
    """In ComfyUI's words, before anything is made."""
    folder = tmp_path / "output"
    folder.mkdir()
    with pytest.raises(Exception, match="Saving image outside the output folder is not allowed"):
        save_path(folder, prefix, 1, 1)
    assert list(tmp_path.iterdir()) == [folder]


@given(st.text(alphabet="ab./\\\0 ", max_size=12))
def test_nothing_is_outside(relative: str) -> None:
    """Whatever the name: in the folder, or None."""
    path = inside(Path("/data/input"), relative)
    assert path is None or path == Path("/data/input") or Path("/data/input") in path.parents


def test_annotated_names(tmp_path: Path) -> None:
    """`name [output]` reads from the output folder; no folder can be left."""
    folders = Folders(input=tmp_path / "in", output=tmp_path / "out", temp=tmp_path / "temp")
    assert folders.annotated("sub/a.png") == tmp_path / "in/sub/a.png"
    assert folders.annotated("a.png [output]") == tmp_path / "out/a.png"
    assert folders.annotated("a.png [temp]") == tmp_path / "temp/a.png"
    assert folders.annotated("../out/a.png") is None
    assert folders.annotated("../a.png [output]") is None
