"""A student of CLIP Distill for transformers: `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.

It needs `pip install 'clip-distill[train]'`.
Shapes: B batch, L tokens, S image side, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils.hub import cached_file

from clip_distill.exports.graph import Output, TextGraph
from clip_distill.exports.target import TextFile
from clip_distill.towers.spec import TowerSpec


class StudentConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Both towers' specs.

    Args:
        image: `TowerSpec` of the image tower, as plain data.
        text: `TowerSpec` of the text tower.
        logit_scale: What cosines are multiplied by.
    """

    model_type = "clip_distill"

    def __init__(
        self,
        image: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        logit_scale: float = 1.0,
        **options: Any,
    ) -> None:
        self.image, self.text, self.logit_scale = image or {}, text or {}, logit_scale
        super().__init__(**options)


class StudentModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """CLIP's interface: `get_image_features`, `get_text_features`, and both at once."""

    config_class = StudentConfig
    main_input_name = "input_ids"

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        spec = TowerSpec(**config.text)
        self.image_tower = TowerSpec(**config.image).build()
        self.text_tower = spec.build()
        whole = Output(spec.embed_dim, spec.embed_dim, False)
        self.reader = [TextGraph(spec, self.text_tower, TextFile("", "", ""), whole)]  # listed: not a part
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale).log())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: Any, *inputs: Any, config: Any = None, **options: Any
    ) -> Any:
        """As the towers build it, then weights: transformers' own way leaves masks empty, which are no weights."""
        hub = {key: options[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in options}
        model: Any = cls(config if isinstance(config, StudentConfig) else StudentConfig.from_pretrained(name, **hub))
        model.load_state_dict(load_file(str(cached_file(name, "model.safetensors", **hub))))
        dtype = options.get("dtype") or options.get("torch_dtype")
        return (model.to(dtype) if isinstance(dtype, torch.dtype) else model).eval()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """[B, 3, S, S] → `pooler_output` [B, D], not normalised."""
        return BaseModelOutputWithPooling(pooler_output=self.image_tower(pixel_values))

    def get_text_features(self, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """[B, L] → `pooler_output` [B, D], not normalised."""
        return BaseModelOutputWithPooling(pooler_output=self.reader[0](input_ids))

    def forward(self, input_ids: Tensor, pixel_values: Tensor, **_: Any) -> CLIPOutput:
        """Unit embeddings of both, and their scaled cosines."""
        found = self.get_image_features(pixel_values), self.get_text_features(input_ids)
        images, texts = (nn.functional.normalize(each["pooler_output"], dim=-1) for each in found)
        scores = self.logit_scale.exp() * texts @ images.T
        return CLIPOutput(logits_per_image=scores.T, logits_per_text=scores, text_embeds=texts, image_embeds=images)
