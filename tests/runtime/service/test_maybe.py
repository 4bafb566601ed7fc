"""Labels in answers of the service and in lines of the camera: there when a caption is not sure, and as described."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import toy_bundle
from PIL import Image

from captionlite.runtime import Captioner, DecodingOptions
from captionlite.runtime.camera.outputs import record
from captionlite.runtime.camera.source import Frame
from captionlite.runtime.camera.watcher import Told
from captionlite.runtime.service.answers import Answerer, Question
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.openapi import describe
from captionlite.runtime.service.parameters import Asked

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    directory: Path = tmp_path_factory.mktemp("labelled") / "toy"
    toy_bundle.write_labelled(directory)
    return Captioner.from_bundle(directory)


def ask(captioner: Captioner, number: int, **options: Any) -> dict[str, Any]:
    stream = BytesIO()
    Image.fromarray(toy_bundle.photographs(8)[number]).save(stream, "PNG")
    question = Question(stream.getvalue(), "image/png", options)
    return Answerer(Limits(workers=1), Asked(DecodingOptions()))(captioner, question)


@pytest.mark.parametrize("number", [0, 7])
@pytest.mark.parametrize("options", [{}, {"min_confidence": 0.9}])
def test_the_service_says_it_and_describes_it(captioner: Captioner, number: int, options: dict[str, Any]) -> None:
    answer = ask(captioner, number, **options)
    assert [one["label"] for one in answer.get("maybe", ())] == (["red fox"] if number == 7 else [])
    document = describe(Limits(workers=1), secured=False)
    schema = {"$ref": "#/components/schemas/Caption", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(answer)


def test_the_camera_says_it(captioner: Captioner) -> None:
    for number, said in ((0, False), (7, True)):
        image = toy_bundle.photographs(8)[number]
        told = Told(Frame(image, 0.0, number=number + 1), captioner.caption(image), 1.0, True, True)
        assert ("maybe" in record(told)) == said
