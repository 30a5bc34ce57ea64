"""The example drops are what the demo promises: small, complete, and valid or broken on purpose."""

import io
import json
from typing import Any

import pytest
from PIL import Image

from processor.errors import JobInvalid
from processor.expand import cells
from processor.models import RenderJob
from processor.reading import read_job
from workflows.examples import Example, examples

EXAMPLES = {example.key: example for example in examples()}
JOBS = [example for example in EXAMPLES.values() if example.kind == "job"]


def _key(example: Example) -> str:
    return example.key


def _render(example: Example) -> tuple[RenderJob, dict[str, Any]]:
    """The job and its graph, as the inbox would read them."""
    job = read_job(example.read(), key=example.key)
    assert isinstance(job, RenderJob)
    assert isinstance(job.workflow, dict)
    return job, job.workflow


def test_there_is_one_of_everything_a_demo_shows() -> None:
    """Good jobs, one a bare export and one a matrix of 12; three broken files; six captioned pictures."""
    kinds = [example.kind for example in EXAMPLES.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"input": 4, "dataset": 12, "job": 7, "broken": 3}
    assert sum("workflow" not in json.loads(job.read()) for job in JOBS) == 1
    assert sorted(cells(_render(job)[0].matrix) for job in JOBS) == [1, 1, 1, 1, 1, 1, 12]


@pytest.mark.parametrize("example", JOBS, ids=_key)
def test_a_job_is_valid_and_complete(example: Example) -> None:
    """Links lead to its own nodes, axes to titles of its own, and each picture it loads is shipped."""
    job, graph = _render(example)
    wired = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
    loaded = {node["inputs"]["image"] for node in graph.values() if node["class_type"] == "LoadImage"}
    titles = {node["_meta"]["title"] for node in graph.values()}
    axes = job.matrix.product if job.matrix else {}
    loaded |= {str(name) for name in axes.get("Photo.image", [])}
    assert {source for source, _ in wired} <= graph.keys()
    assert {axis.partition(".")[0] for axis in axes} <= titles
    assert loaded == job.inputs.keys()
    assert set(job.inputs.values()) <= EXAMPLES.keys()


def test_the_datasets_pictures_have_their_captions() -> None:
    """Each picture has a UTF-8 caption that names the trigger word."""
    files = {key: example for key, example in EXAMPLES.items() if example.kind == "dataset"}
    pictures = [key for key in files if key.endswith(".jpg")]
    captions = [files[key.removesuffix(".jpg") + ".txt"].read().decode() for key in pictures]
    assert len(captions) == 6
    assert all("redcup" in caption for caption in captions)


def test_the_pictures_are_small() -> None:
    """Bounds that keep a clone and an install light; every picture opens."""
    pictures = {key: example.read() for key, example in EXAMPLES.items() if key.endswith(".jpg")}
    assert max(len(picture) for picture in pictures.values()) < 120_000
    assert sum(len(picture) for picture in pictures.values()) < 600_000
    for picture in pictures.values():
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            assert max(image.size) <= 768


@pytest.mark.parametrize(
    ("name", "complaint"), [("not-json", "JSON"), ("ui-export", "UI format")], ids=["not-json", "ui-export"]
)
def test_two_of_the_broken_ones_cannot_be_read(name: str, complaint: str) -> None:
    """The inbox refuses them before anything is planned."""
    key = f"inbox/{name}.json"
    with pytest.raises(JobInvalid, match=complaint):
        read_job(EXAMPLES[key].read(), key=key)


def test_the_third_broken_one_reads_well_and_names_a_node_that_nothing_has() -> None:
    """Only the engine's own list of nodes can refuse it."""
    _, graph = _render(EXAMPLES["inbox/unknown-node.json"])
    assert "UltimateSharpen" in [node["class_type"] for node in graph.values()]
