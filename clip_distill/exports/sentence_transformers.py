"""Both towers as a folder that sentence-transformers loads: transformers' folder, and what says how to use it.

Shapes: B texts, L tokens, D embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clip_distill.exports.open_clip import PROBES
from clip_distill.exports.save import Fidelity, require_near
from clip_distill.exports.target import Given
from clip_distill.exports.transformers import write as write_transformers
from clip_distill.system.errors import MissingPackage
from clip_distill.system.files import read_json, write_json
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec

MODULES = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
)
MODEL: dict[str, Any] = {
    "model_type": "SentenceTransformer",
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}


def write(folder: Path, given: Given) -> None:
    """Write transformers' folder and what SentenceTransformer reads: texts and photos in, unit embeddings out; compare.

    Args:
        folder: Empty folder.
        given: What is exported.

    Raises:
        FellShort: It gives other embeddings.
        InvalidValue: As for transformers.
        MissingPackage: sentence-transformers is not installed.
    """
    write_transformers(folder, given)
    native = "auto_map" not in read_json(folder / "config.json")
    one = {"method_output_name": "pooler_output"}
    modalities = {"text": {"method": "get_text_features", **one}, "image": {"method": "get_image_features", **one}}
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": modalities,
            "module_output_name": "sentence_embedding",
        },
    )
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(MODULES)]
    write_json(folder / "modules.json", entries)
    write_json(folder / "config_sentence_transformers.json", MODEL)
    verify(folder, given, native)


@torch.inference_mode()
def verify(folder: Path, given: Given, native: bool) -> None:
    """Load the folder with sentence-transformers, offline, and compare embeddings of texts.

    Raises:
        FellShort: They differ.
        MissingPackage: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        hint = "install it with: pip install 'clip-distill[sentence-transformers]'"
        raise MissingPackage(f"--to sentence-transformers needs {error.name}; {hint}") from error
    model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=not native)
    spec = TokenizerSpec(**given.text[0].tokenizer)
    expected = given.text[1].eval()(tokenize(spec, PROBES).pad(spec.pad_id, spec.context_length))
    found = Fidelity.of(expected, model.encode(PROBES, convert_to_tensor=True))
    require_near("text", given.weights, found, given.min_cosine)
