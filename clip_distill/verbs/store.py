"""`clip-distill store …`: look at a store, check it, and exchange it with other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.corpus.layout import Corpus, Sources
from clip_distill.evaluation.reduce import EXAMPLES as REDUCE
from clip_distill.evaluation.reduce import reduce
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.store.clip_retrieval import Column
    from clip_distill.store.table import Store
    from clip_distill.system.remote import Location

Split = Literal["train", "val"]

USAGE = """usage: clip-distill store VERB [options]

Look at a store of embeddings, check it, and exchange it with other programs.

  info        what the store holds and what made it
  verify      read all of it and compare every byte with its SHA-256
  export      write it as clip-retrieval's folders (.npy and parquet), which autofaiss reads, too
  import      read such a folder into a store
  combine     make several teachers' stores one, to train on all of them
  reduce      fewer numbers a sample, by one map for both towers

`clip-distill store VERB --help` explains each.
"""

READS = ("data",)  # places that must be there
EXAMPLES = {
    "combine": """\
  clip-distill store combine --stores '[stores/b32, stores/l14]' --out stores/both
  clip-distill fit --tower text --data DATA --store stores/both --out runs/text""",
    "reduce": REDUCE,
    "info": "  clip-distill store info --store stores/b32",
    "verify": "  clip-distill store verify --store stores/b32",
    "export": """\
  # each table on its own: out/image/ and out/text/
  clip-distill store export --store stores/b32 --split val --out out
  # pairs of photo and caption, row by row, as the data has them
  clip-distill store export --store stores/b32 --split val --out out --data DATA
  clip-distill store export --store stores/cc --out out --sources.train_images 'shards/{000..099}.tar'
  autofaiss build_index --embeddings out/img_emb --index_path image.index""",
    "import": """\
  clip-distill store import --folder out --store stores/b32 --split train --teacher ViT-B-32/openai
  # image_path is not yet what this program calls a photo: look names up in the data
  clip-distill store import --folder out --store stores/b32 --split train --teacher ViT-B-32/openai --data DATA""",
}


def combine(stores: list[str], out: str, how: Literal["concat", "mean"] = "concat") -> None:
    """Make several teachers' stores one: `--store` of every verb takes the ensemble, and nothing is copied.

    Args:
        stores: Two or more, made from the same data with the same views.
        out: Folder to write.
        how: concat (widths add up, cosines are averaged) or mean (teachers of one width that agree on directions).
    """
    from clip_distill.store.ensemble import write_ensemble

    write_ensemble(Path(out), stores, how)
    say(f"{out}: {how} of {', '.join(stores)}")


def info(store: str) -> None:
    """Say what a store holds and what made it.

    Args:
        store: Folder or URL that `clip-distill embed` wrote, or an ensemble: each store that it combines.
    """
    from rich.console import Console
    from rich.table import Table

    from clip_distill.store.ensemble import stores_of

    console = Console()
    roots = [str(root) for root in stores_of(store)]
    if roots != [store.rstrip("/")]:
        console.print(f"{store}: an ensemble of {len(roots)} stores", soft_wrap=True)
    teachers: dict[str, str] = {}
    for root in roots:
        folders = tables_of(root)
        columns = [_describe(folder, teachers) for folder in folders]
        table = Table("", *(folder.name for folder in folders), title=root)
        for fact in dict.fromkeys(fact for column in columns for fact in column):
            table.add_row(fact, *(column.get(fact, "") for column in columns))
        console.print(table)
    for digest, name in teachers.items():
        console.print(f"teacher {name}, weights SHA-256 {digest}", soft_wrap=True)


def tables_of(root: Location | str) -> list[Location]:
    """Folders of the tables below a store's root, finished or not.

    Raises:
        StoreError: There is none.
    """
    from clip_distill.store.manifest import StoreError
    from clip_distill.store.table import table_folder
    from clip_distill.towers.spec import TOWERS

    folders = [table_folder(root, tower, split) for tower in TOWERS for split in ("train", "val")]
    folders.append(table_folder(root, "text", "prompts"))
    found = [folder for folder in folders if any(folder.glob("*.json"))]
    if not found:
        raise StoreError(
            f"{root}: expected a store, found none of its tables ({', '.join(folder.name for folder in folders)})"
        )
    return found


def _describe(folder: Location, teachers: dict[str, str]) -> dict[str, str]:
    """What there is to say of a table; adds its teacher, digest → name."""
    from clip_distill.store.manifest import MANIFEST
    from clip_distill.store.table import Store

    if not (folder / MANIFEST).is_file():
        return {"rows": "unfinished", "shards": str(len(list(folder.glob("shard-*/shard.json"))))}
    store = Store(folder)
    made_by = store.manifest
    teachers[made_by.teacher["weights_sha256"]] = made_by.teacher["name"]
    return {
        "rows": f"{len(store):,}",
        "views": str(made_by.views) + (f" ({made_by.augment}, seed {made_by.seed})" if made_by.views > 1 else ""),
        "dim": str(made_by.dim),
        "stored as": made_by.dtype,
        "computed in": made_by.precision,
        "shards": str(len(made_by.shards)),
        "on disk": f"{_bytes_on_disk(store) / 1e6:,.1f} MB",
        "skipped": "\n".join(f"{count:,} {reason}" for reason, count in made_by.skipped.items()) or "none",
    }


def _bytes_on_disk(store: Store) -> int:
    from fsspec.core import url_to_fs

    system, inside = url_to_fs(str(store.folder))
    return int(system.du(inside))


def verify(store: str) -> None:
    """Read a whole store and compare every file with its manifest; exit code 1 if anything differs.

    Args:
        store: Folder or URL that `clip-distill embed` wrote, or an ensemble: each store that it combines.
    """
    from clip_distill.store.ensemble import stores_of
    from clip_distill.store.manifest import StoreError
    from clip_distill.store.table import Store
    from clip_distill.store.verify import problems

    tables = [Store(folder) for root in stores_of(store) for folder in tables_of(root)]
    found = [line for table in tables for line in problems(table)]
    if found:
        raise StoreError(
            "\n  ".join([f"{store}: {len(found)} problems", *found])
            + "\nCopy the damaged tables again, or delete their folders and run `clip-distill embed`."
        )
    files = sum(len(shard["sha256"]) for table in tables for shard in table.manifest.shards)
    say(f"{store}: {len(tables)} tables, {files:,} files, all as written")


def export(
    store: str,
    out: str,
    split: Split = "train",
    data: str | None = None,
    format: Literal["clip-retrieval"] = "clip-retrieval",
    normalise: bool = True,
    rows_per_file: int = 1_000_000,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> None:
    """Write a store's plain views as clip-retrieval's folders.

    Args:
        store: Folder or URL that `clip-distill embed` wrote.
        out: New folder: `image/` and `text/`, each a clip-retrieval folder of one kind; with the data one of both.
        split: Which tables.
        data: The data the store was made from: one row for each caption and its photo, instead of one for each photo
            and one for each unique caption.
        format: The layout.
        normalise: Scale embeddings to unit length, as clip-retrieval does.
        rows_per_file: At most this many rows in a .npy file.
        sources: As for embed, beside `data` or instead of it: other places for parts of the data.
    """
    import numpy as np

    from clip_distill.store.clip_retrieval import Column
    from clip_distill.store.clip_retrieval import export as write
    from clip_distill.store.manifest import MANIFEST
    from clip_distill.store.table import Store, table_folder
    from clip_distill.towers.spec import TOWERS

    corpus = _corpus(data, sources)
    if corpus is not None:
        count = write(Path(out), _pairs(store, split, corpus), normalise, rows_per_file)
        say(f"{out}: {count:,} pairs of photo and caption")
        return
    tables = {tower: table_folder(store, tower, split) for tower in TOWERS}
    tables = {tower: folder for tower, folder in tables.items() if (folder / MANIFEST).is_file()}
    if not tables:
        raise InvalidValue(f"{store}: expected a finished table of the split {split!r}, found none")
    for tower, folder in tables.items():
        table = Store(folder)
        count = write(Path(out) / tower, {tower: Column(table, np.arange(len(table)))}, normalise, rows_per_file)
        say(f"{Path(out) / tower}: {count:,} {tower}s")


def _corpus(data: str | None, sources: Sources) -> Corpus | None:
    """The data, where anything says where it lies."""
    from clip_distill.corpus.layout import scan

    return None if data is None and sources == Sources() else scan(data, sources)


def _pairs(root: str, split: Split, corpus: Corpus) -> dict[str, Column]:
    """The rows of each caption and its photo, where the store has both."""
    from clip_distill.store.clip_retrieval import Column
    from clip_distill.store.ensemble import open_table

    images, texts = (open_table(root, tower, split) for tower in ("image", "text"))
    captions = getattr(corpus, split).require_captions()
    captions = captions.filter(captions.column("image_id").is_valid())
    image_rows, text_rows = images.find(captions.column("image_id")), texts.find(captions.column("text"))
    both = (image_rows >= 0) & (text_rows >= 0)
    if not both.any():
        raise InvalidValue(f"{root}: expected pairs of the data's captions and photos, found none in the store")
    return {"image": Column(images, image_rows[both]), "text": Column(texts, text_rows[both])}


def import_folder(
    folder: str,
    teacher: str,
    store: str,
    split: Split = "train",
    tower: Literal["image", "text", "both"] = "both",
    data: str | None = None,
    shard_rows: int = 8192,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> None:
    """Read a clip-retrieval folder (img_emb/, text_emb/, metadata/) into a store.

    Args:
        folder: The folder.
        teacher: The model that made it; nothing in the folder says so, only the width can be checked.
        store: Folder or URL to write; it gets one table per tower.
        split: Which split the samples are.
        tower: Which side of the samples.
        data: The data that `fit` will read: photos are looked up in it by name, others are left out. Without it,
            image_path is taken for the photo's id (`image/a.jpg`, `shard-000.tar/000123`).
        shard_rows: Rows per shard.
        sources: As for embed, beside `data` or instead of it: other places for parts of the data.
    """
    from clip_distill.store.build import build_table
    from clip_distill.store.clip_retrieval import items_of, open_folder, photo_ids, read_with
    from clip_distill.store.manifest import Manifest
    from clip_distill.store.table import table_folder
    from clip_distill.teachers import load_teacher
    from clip_distill.towers.spec import TOWERS

    corpus = _corpus(data, sources)
    for each in TOWERS if tower == "both" else (tower,):
        facts = load_teacher(teacher, each)[0].teacher
        source = open_folder(Path(folder), each, facts["embed_dim"])
        by_name = corpus is not None and each == "image"
        ids = photo_ids(source.names, getattr(corpus, split).require_images()) if by_name else source.names
        made_by = Manifest(each, split, facts, 1, "none", 0, source.dtype, precision="imported")
        table = build_table(
            table_folder(store, each, split), made_by, items_of(source, ids), read_with(source), shard_rows
        )
        rows = "shards of other processes are missing" if table is None else f"{len(table):,} rows"
        say(f"{table_folder(store, each, split)}: {rows}, from {len(source.names):,}")


VERBS: dict[str, Any] = {
    "info": info,
    "verify": verify,
    "export": export,
    "import": import_folder,
    "combine": combine,
    "reduce": reduce,
}
