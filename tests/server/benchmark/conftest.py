"""What benchmarks of the service share: a tiny backbone with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reference.tiny_models import ARCHITECTURES, make_model
from tests.reference.tiny_tokenizers import bert_like


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    make_model(ARCHITECTURES[0]).save_pretrained(folder)
    bert_like().save_pretrained(folder)
    return folder
