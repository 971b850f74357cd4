"""The recipes of other papers and projects, for one tower and a store: complete settings, in one table.

All share the student, its vocabulary, the data, the store with its views, the batch size and the precision of the
recipe that they are compared with. Their own are loss, first weights, and what else is named here. Learning rate,
decay, warm-up and schedule are those of the compared recipe too, since the papers' belong to other batch sizes and
weeks of training; `--lrs` tunes each peer's learning rate. The exception is the original, which is as it was.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

OURS, OURS_RANDOM, ORIGINAL = "ours", "ours-random-init", "original"
BOTH = ("image", "text")
# what a recipe may have that no peer has
PLAIN: dict[str, Any] = {"ema": 0.0, "mixup": 0.0, "target": "stored", "augment": "none"}
RANDOM: dict[str, Any] = {"init": "random", "freeze": 0, "probe": 0}


@dataclass(frozen=True)
class Peer:
    """One recipe to compare with.

    Args:
        source: Paper or code.
        loss: The recipe's whole group.
        student: Keys of the recipe's `student`, over random first weights.
        more: Whole top-level keys of the recipe.
        towers: For which it is meant.
    """

    source: str
    loss: dict[str, Any]
    student: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    towers: tuple[str, ...] = BOTH


def peers(tower: str, temperature: float) -> dict[str, Peer]:
    """Name → peer.

    Args:
        tower: image or text.
        temperature: 1 / the teacher's logit scale, where a paper takes that (for CLIP: 0.01).
    """
    feature, contrast = {"mse": {"normalize": True}}, {"icl": {"temperature": 0.07}}
    online = {"target": "online", "augment": "original" if tower == "image" else "none"}
    everything = {
        # the first version of this project: teacher online, flips both ways and rotation, float32, rates by steps
        ORIGINAL: Peer(
            "the original script's defaults",
            {"names": ["l1", "kl", "ce"], "weights": [0.35, 0.6, 0.05], "options": {"kl": {"temperature": 4}}},
            more=online
            | {
                "optimizer": {"lr": 1e-3, "weight_decay": 1e-5, "warmup": 0.0, "schedule": "step"}
                | {"step_epochs": 10, "step_gamma": 0.5},
                "precision": "32-true",
            },
        ),
        # Yang et al., CLIP-KD, CVPR 2024, arXiv:2307.12732: eq. 8 (FD) and ICL, weights of its scripts; random weights
        "clip-kd-fd": Peer("CLIP-KD, feature MSE", {"names": ["mse"], "weights": [2000], "options": feature}),
        "clip-kd-icl": Peer("CLIP-KD, interactive contrastive", {"names": ["icl"], "options": contrast}),
        "clip-kd": Peer(
            "CLIP-KD, both", {"names": ["mse", "icl"], "weights": [2000, 1], "options": feature | contrast}
        ),
        # Wu et al., TinyCLIP, ICCV 2023, arXiv:2309.12314: affinity mimicking on the batch's pairs, weights inherited
        "tinyclip": Peer(
            "TinyCLIP",
            {"names": ["pair_affinity"], "options": {"pair_affinity": {"temperature": temperature}}},
            student={"init": "teacher", "select": "important"},
        ),
        # Sun et al., DIME-FM, ICCV 2023, arXiv:2303.18232: 0.7 · both ways on a bank; pseudo-VL 0.6
        "dime-fm": Peer(
            "DIME-FM",
            {
                "names": ["affinity", "queue_kl"],
                "weights": [1.4, 0.6],
                "options": {"affinity": {"temperature": temperature}, "queue_kl": {"size": 0, "temperature": 0.03}},
            },
        ),
        # lightly-train's distillation, after Fang et al., SEED, ICLR 2021, arXiv:2101.04731
        "lightly": Peer(
            "lightly-train", {"names": ["queue_kl"], "options": {"queue_kl": {"size": 4096, "temperature": 0.07}}}
        ),
        # Reimers and Gurevych, EMNLP 2020, arXiv:2004.09813: MSELoss; and cosines in its place
        "sbert-mse": Peer("sentence-transformers, MSE", {"names": ["mse"]}, towers=("text",)),
        "sbert-cosine": Peer("sentence-transformers, cosine", {"names": ["cosine"]}, towers=("text",)),
    }
    return {name: peer for name, peer in everything.items() if tower in peer.towers}


def recipes(base: dict[str, Any], known: dict[str, Peer], same_init: bool = False) -> dict[str, dict[str, Any]]:
    """Name → complete recipe, as in a YAML: ours, ours from random weights, and every peer with our student.

    Args:
        base: The recipe that is compared with the peers.
        known: The peers.
        same_init: Give all peers but the original our first weights, and what of them we freeze.
    """
    found = {OURS: copy.deepcopy(base)}
    if base["student"].get("init", "random") == "teacher":
        found[OURS_RANDOM] = copy.deepcopy(base)
        found[OURS_RANDOM]["student"] |= RANDOM
    for name, peer in known.items():
        theirs = copy.deepcopy(base) | copy.deepcopy(PLAIN | {"loss": peer.loss} | peer.more)
        theirs["student"] |= {"word_dropout": 0.0, "probe": 0}  # how it is trained, not what it is
        if not same_init or name == ORIGINAL:
            theirs["student"] |= RANDOM | peer.student
        if str(theirs["student"].get("name")).startswith("timm"):
            theirs["student"].pop("select", None)  # of the channels of open_clip's transformers alone
        if "precision" in theirs:
            theirs["trainer"]["precision"] = theirs.pop("precision")
        found[name] = theirs
    for each in found.values():
        if not each["student"].get("freeze") and "loader" in each:
            each["loader"].pop("features", None)  # which are those of frozen stages
    return found
