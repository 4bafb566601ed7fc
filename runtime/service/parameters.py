"""Decoding options that a request may set: bounded, so that no request costs much more than another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import OptionsError
from captionlite.runtime.service.problems import RequestError, bad_request, shown

MIN_CONFIDENCE = "min_confidence"


@dataclass(frozen=True)
class Parameter:
    """One option: its JSON type ("integer", "number" or "string"), bounds (of a text: its length), and what it does."""

    kind: str
    low: float
    high: float
    about: str
    example: Any
    repeated: int = 0  # a list of up to so many

    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        if self.kind == "string":
            one: dict[str, Any] = {"type": "string", "minLength": int(self.low), "maxLength": int(self.high)}
        elif self.kind == "integer":
            one = {"type": "integer", "minimum": int(self.low), "maximum": int(self.high)}
        else:
            one = {"type": "number", "minimum": self.low, "maximum": self.high}
        return {"type": "array", "items": one, "maxItems": self.repeated} if self.repeated else one

    def expected(self) -> str:
        """In words."""
        what = {"integer": "an integer", "number": "a number", "string": "a text"}[self.kind]
        length = " characters" if self.kind == "string" else ""
        return f"{what} {'of' if length else 'from'} {self.low:g} to {self.high:g}{length}"


PARAMETERS: dict[str, Parameter] = {
    "beams": Parameter("integer", 1, 8, "Follow so many hypotheses side by side.", 3),
    "length_penalty": Parameter("number", 0, 4, "Rank by sum / length ** this.", 1.0),
    "patience": Parameter("number", 0.125, 4, "End when beams * this captions are finished.", 1.0),
    "temperature": Parameter("number", 0, 10, "Draw words at random; 1 as the model says, less is surer.", 0.7),
    "top_k": Parameter("integer", 1, 100_000, "Draw among the so many likeliest words only.", 50),
    "top_p": Parameter("number", 0.001, 1, "Draw among the words that hold this share of probability only.", 0.9),
    "best_of": Parameter("integer", 1, 8, "Draw so many captions, take the likeliest.", 2),
    "seed": Parameter("integer", 0, 2**32 - 1, "Of the drawing.", 0),
    "no_repeat_ngram": Parameter("integer", 0, 20, "No sequence of so many words twice.", 3),
    "min_length": Parameter("integer", 0, 1000, "At least so many words.", 4),
    "max_length": Parameter("integer", 1, 1000, "At most so many tokens, the end token included.", 16),
    "suppress": Parameter("string", 1, 60, "Never say this word; may be repeated.", ["man"], repeated=16),
    "prefix": Parameter("string", 0, 200, "How the caption begins.", "a photo of"),
    "passes": Parameter("integer", 1, 32, "So many parallel passes (bundles of the family masked_lm only).", 4),
    "n_best": Parameter("integer", 1, 8, "List so many hypotheses; needs beams or best_of.", 1),
    MIN_CONFIDENCE: Parameter(
        "number", 0, 1, 'Below this confidence the answer has "sure": false and what it might be instead.', 0.5
    ),
}


@dataclass(frozen=True)
class Asked:
    """How to caption one photograph."""

    options: DecodingOptions
    min_confidence: float | None = None


def read_texts(pairs: Sequence[tuple[str, str]], where: str) -> dict[str, Any]:
    """Options as a query or a form has them: texts. Raises RequestError (400)."""
    found: dict[str, Any] = {}
    for name, text in pairs:
        parameter = _known(name, where)
        value: Any = text
        if parameter.kind != "string":
            try:
                value = int(text) if parameter.kind == "integer" else float(text)
            except ValueError:
                raise _wrong(name, parameter, text, where) from None
        if parameter.repeated:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise bad_request(f"The option {name} stands twice in the {where}.", expected=f"{name} once at most")
        else:
            found[name] = value
    return read_values(found, where)


def read_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options as JSON has them, checked; lists become tuples. Raises RequestError (400)."""
    found = {}
    for name, value in values.items():
        parameter = _known(name, where)
        if not parameter.repeated:
            found[name] = _checked(name, parameter, value, where)
            continue
        if not isinstance(value, list) or len(value) > parameter.repeated:
            length = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
            raise bad_request(
                f"The option {name} in the {where} cannot be read.",
                found=length,
                expected=f"a list of at most {parameter.repeated} texts",
            )
        found[name] = tuple(_checked(name, parameter, one, where) for one in value)
    return found


def merge(defaults: Asked, *sources: Mapping[str, Any]) -> Asked:
    """The service's defaults with a request's own options over them. Raises RequestError (400 or 422)."""
    given: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            if name in given:
                raise bad_request(f"The option {name} stands in the query and in the body.", expected="one of them")
            given[name] = value
    min_confidence = given.pop(MIN_CONFIDENCE, defaults.min_confidence)
    try:
        return Asked(replace(defaults.options, **given), min_confidence)
    except OptionsError as error:
        raise cannot_follow(error) from None


def cannot_follow(error: OptionsError) -> RequestError:
    """422, for options that are well-formed, and that contradict each other or the bundle."""
    return RequestError(
        HTTPStatus(422),  # by number: Python 3.13 renamed it
        "These options cannot be followed.",
        found=str(error)[:500],
        expected="options that agree with each other and with the bundle",
        next_step="Change or leave out the options named.",
    )


def _known(name: str, where: str) -> Parameter:
    parameter = PARAMETERS.get(name)
    if parameter is None:
        raise bad_request(
            f"The {where} has an option that is not known here.",
            found=shown(name),
            expected=", ".join(PARAMETERS),
            next_step="Correct its name or leave it out.",
        )
    return parameter


def _checked(name: str, parameter: Parameter, value: Any, where: str) -> Any:
    if parameter.kind == "string":
        if not isinstance(value, str) or not value.isprintable():
            raise _wrong(name, parameter, value, where)
        size: float = len(value)
    else:
        types = (int,) if parameter.kind == "integer" else (int, float)
        if type(value) not in types:  # true and false are no numbers
            raise _wrong(name, parameter, value, where)
        size = value
    if not parameter.low <= size <= parameter.high:  # nor is NaN between any two
        raise _wrong(name, parameter, value, where)
    return value


def _wrong(name: str, parameter: Parameter, value: Any, where: str) -> RequestError:
    return bad_request(
        f"The option {name} in the {where} cannot be followed.",
        found=shown(value) if isinstance(value, str) else shown(repr(value)),
        expected=parameter.expected(),
        next_step="Correct it or leave it out.",
    )
