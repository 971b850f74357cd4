"""A page that searches photos in a browser, without a server's help: all runs in the page."""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

from clip_distill.exports.target import Given, ImageFile, Target, TextFile
from clip_distill.exports.tokenizer_files import FILES, write_tokenizer
from clip_distill.system.npm import Package, fetch

PAGE = ("index.html", "page.js", "page.css")
PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
        "MIT",
    ),
    Package(
        "@huggingface/tokenizers",
        "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        ("dist/tokenizers.min.mjs",),
        "Apache-2.0",
    ),
)


def write_beside(folder: Path, given: Given) -> None:
    """The page, the runtime, the tokenizer's library and its file.

    Raises:
        InvalidValue: The npm registry can't be reached, and the files aren't in the cache.
    """
    page = importlib.resources.files("clip_distill.exports.page")
    for name in PAGE:
        with importlib.resources.as_file(page / name) as path:
            shutil.copyfile(path, folder / name)
    (folder / "lib").mkdir()
    for package in PACKAGES:
        for name, path in fetch(package).items():
            shutil.copyfile(path, folder / "lib" / Path(name).name)
    write_tokenizer(folder, given.text[0])


WEB = Target(
    name="web",
    program="any browser: one page that searches the photos that one chooses, all in the page",
    image=ImageFile("image", "pixels", "image_features", dtype="uint8", layout="NHWC"),
    text=TextFile("text", "tokens", "text_features"),
    tokenizers=FILES,
    beside=write_beside,
    licence="lib: " + ", ".join(f"{each.name} {each.version}, {each.licence}" for each in PACKAGES),
)
