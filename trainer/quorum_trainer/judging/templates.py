"""What a judge is asked: the published prompts, read from their own files, and their blanks filled in.

    FILE  --read_alpaca_template, read_fastchat_prompts-->  Template  --fill-->  messages

Pure but for the reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from quorum_client.errors import InvalidRequest, MissingExtra

_SECTION = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)\n?<\|im_end\|>", re.DOTALL)
_BLANK = re.compile(r"\{([a-z_]+[0-9]*(?:_[0-9]+)?)\}")
_ALPACA_CLF = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"


@dataclass(frozen=True, slots=True)
class Template:
    """A judge's prompt. messages: (role, text with blanks like {instruction})."""

    name: str
    messages: tuple[tuple[str, str], ...]

    def blanks(self) -> set[str]:
        """Names of what has to be filled in."""
        return {blank for _, text in self.messages for blank in _BLANK.findall(text)}

    def fill(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """The messages, every blank filled at once: what an answer holds is never taken for a blank.

        Raises:
            InvalidRequest: a blank has no value.
        """
        missing = sorted(self.blanks() - set(values))
        if missing:
            raise InvalidRequest(f"the judge's prompt {self.name} asks for {', '.join(missing)}")
        return [
            {"role": role, "content": _BLANK.sub(lambda blank: values[blank[1]], text)} for role, text in self.messages
        ]


def read_alpaca_template(path: Path | None) -> Template:
    """AlpacaEval's prompt: of a file in its form (`<|im_start|>user …`), or the classifier's of the installed package.

    Raises:
        MissingExtra: no file is given, and the package is not installed.
        InvalidRequest: the file cannot be read, or lacks an instruction and two outputs.
    """
    if path is None:
        if find_spec("alpaca_eval") is None:
            raise MissingExtra("the judge's prompt: pip install alpaca_eval, or give --template FILE")
        return _alpaca("alpaca_eval_clf", files("alpaca_eval").joinpath(_ALPACA_CLF).read_text(encoding="utf-8"))
    return _alpaca(path.name, _read(path))


def _alpaca(name: str, text: str) -> Template:
    sections = tuple((role, content) for role, content in _SECTION.findall(text)) or (("user", text),)
    template = Template(name, sections)
    lacking = {"instruction", "output_1", "output_2"} - template.blanks()
    if lacking:
        raise InvalidRequest(f"{name}: a pairwise prompt needs {{{'}, {'.join(sorted(lacking))}}}")
    return template


def read_fastchat_prompts(path: Path) -> dict[str, Template]:
    """FastChat's judge prompts (`judge_prompts.jsonl`), by name.

    Raises:
        InvalidRequest: the file cannot be read, or a line is no judge prompt.
    """
    found = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, system, prompt = (str(row[key]) for key in ("name", "system_prompt", "prompt_template"))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"{path.name}, line {number}: is no judge prompt of FastChat") from error
        found[name] = Template(name, (("system", system), ("user", prompt)))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: cannot be read: {error}") from error
