"""A model's folder is data: code that lies in it is never imported, and pickled weights are never opened."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quorum_model.backbone import is_causal, load_backbone
from quorum_model.errors import BackboneNotFound, Unsupported
from quorum_model.sources import hash_weights, load_tokenizer
from tests.model.test_backbone import save

CODE = "from pathlib import Path\nPath({mark!r}).touch()\n"


class Mark:
    """Pickled, it touches a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_own_model(folder: Path, mark: Path) -> None:
    """An architecture that only the code in the folder knows, as hubs have them."""
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    edit(folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=classes)


def with_own_tokenizer(folder: Path, mark: Path) -> None:
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
    )


def with_pickled_weights(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Mark(mark)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "load", "error"),
    [
        (with_own_model, load_backbone, Unsupported),
        (with_own_model, is_causal, Unsupported),
        (with_own_tokenizer, load_tokenizer, None),
        (with_pickled_weights, load_backbone, Unsupported),
        (with_pickled_weights, hash_weights, BackboneNotFound),
    ],
)
def test_no_code_of_a_folder_is_run(
    tmp_path: Path,
    spoil: Callable[[Path, Path], None],
    load: Callable[[Path], Any],
    error: type[Exception] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Asked on a terminal whether to trust the code, a user may press Enter: nobody must be asked.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    folder, mark = save(tmp_path / "model"), tmp_path / "mark"
    spoil(folder, mark)
    if error is None:
        load(folder)  # by its tokenizer.json, as which class does not matter
    else:
        with pytest.raises(error):
            load(folder)
    assert not mark.exists()


def test_the_marks_are_made_by_what_would_run(tmp_path: Path) -> None:
    """The traps above do go off."""
    exec(CODE.format(mark=str(tmp_path / "a")))
    pickle.loads(pickle.dumps(Mark(tmp_path / "b")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
