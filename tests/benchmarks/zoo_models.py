"""The models of the zoo: small, with random weights, made by the libraries that people use; nothing is downloaded.

``MODELS`` maps a name, which begins with the library's, to a function that makes the model and imports what it needs.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Objective
from unlearnkit.data.batches import map_tensors

LENGTH, VOCABULARY, CLASSES = 12, 64, 5
NARROW = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_labels": CLASSES,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

WIDE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 128,
}

OWN = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "hidden_size", "num_key_value_heads"))
"""For models that have other names for these."""


@attrs.frozen
class Output(Objective):
    """A smooth function of the output, position by position weighted so that no gradient is uniform."""

    call: Callable[[nn.Module, Any], Any]

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        found = [t for t in _tensors(self.call(model, batch)) if t.is_floating_point()]
        total: Any = 0
        for y in found:
            flat = y.flatten(1)
            ramp = torch.linspace(0.5, 1.5, flat.shape[1], dtype=y.dtype)
            total = total + (nn.functional.softplus(flat) * ramp).mean(1) + (flat * ramp.flip(0)).mean(1)
        return total


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for one in value for t in _tensors(one)] if isinstance(value, tuple | list) else []


@attrs.frozen
class Made:
    """A model, what draws a batch of so many samples, and the loss of each sample."""

    model: nn.Module
    draw: Callable[[int], Any]
    objective: Objective


def images(side: int, channels: int = 3) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (torch.randn(n, channels, side, side),)


def tokens(n: int, length: int = LENGTH) -> tuple[Tensor, ...]:
    found = torch.randint(4, VOCABULARY, (n, length))
    found[:, -1] = 2
    return (found,)


def first(model: nn.Module, batch: Any) -> Any:
    """The logits, or whatever else a model returns first."""
    return logits(model(batch[0]))


def logits(found: Any) -> Any:
    for name in ("logits", "logits_per_image", "last_hidden_state", "sample", "prediction_outputs"):
        if getattr(found, name, None) is not None:
            return getattr(found, name)
    return found


def timm(name: str, side: int | None = 64, **options: Any) -> Callable[[], Made]:
    """A model for images of ``side`` pixels, by default those of its weights."""

    def make() -> Made:
        model = import_module("timm").create_model(name, pretrained=False, num_classes=CLASSES, **options)
        return Made(model, images(side or model.default_cfg["input_size"][-1]), Output(first))

    return make


def hugging_face(
    kind: str,
    task: str = "SequenceClassification",
    call: Callable[[nn.Module, Any], Any] = first,
    draw: Callable[[int], Any] = tokens,
    experts: str = "",
    **options: Any,
) -> Callable[[], Made]:
    def make() -> Made:
        transformers = import_module("transformers")
        wanted = {key: value for key, value in {**NARROW, **options}.items() if value is not None}
        config = transformers.AutoConfig.for_model(kind, **wanted)
        if experts:
            config._experts_implementation = experts
        own = getattr(transformers, task, None)  # a class of the model's own, which no mapping names
        auto = None if own else getattr(transformers, f"AutoModelFor{task}")
        return Made(own(config) if auto is None else auto.from_config(config), draw, Output(call))

    return make


def vision(kind: str, side: int = 32, task: str = "ImageClassification", **options: Any) -> Callable[[], Made]:
    return hugging_face(kind, task, draw=images(side), image_size=side, **options)


def language(kind: str, **options: Any) -> Callable[[], Made]:
    return hugging_face(kind, "CausalLM", **options)


def translation(kind: str, **options: Any) -> Callable[[], Made]:
    def call(model: nn.Module, batch: Any) -> Any:
        return model(input_ids=batch[0], decoder_input_ids=batch[0][:, :8]).logits

    few = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 1}
    return hugging_face(kind, "Seq2SeqLM", call, **{**few, **heads, **options})


def sounds(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 800),)


def audio(kind: str, **options: Any) -> Callable[[], Made]:
    convolutions = {
        "conv_dim": (16, 16, 16),
        "conv_kernel": (10, 3, 3),
        "conv_stride": (5, 4, 2),
        "num_feat_extract_layers": 3,
    }
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
    return hugging_face(kind, "AudioClassification", draw=sounds, **{**convolutions, **positions, **options})


def two_towers(kind: str, **options: Any) -> Callable[[], Made]:
    """The similarity of an image and its own text."""

    def call(model: nn.Module, batch: Any) -> Any:
        found = model(pixel_values=batch[0], input_ids=batch[1])
        return found.logits_per_image.diagonal().unsqueeze(1)

    def make() -> Made:
        transformers = import_module("transformers")
        text = {**NARROW, "projection_dim": 16}
        text.pop("num_key_value_heads")
        image = {**text, "image_size": 32, "patch_size": 8}
        config = transformers.AutoConfig.for_model(
            kind, text_config=text, vision_config=image, projection_dim=16, **options
        )
        return Made(transformers.AutoModel.from_config(config), lambda n: (*images(32)(n), *tokens(n)), Output(call))

    return make


def peft(config: str, base: str = "bert", **options: Any) -> Callable[[], Made]:
    """An adapter on a small language model; the adapter alone is trained."""

    def make() -> Made:
        library = import_module("peft")
        causal = base != "bert"
        inner = (language("llama") if causal else hugging_face("bert"))().model
        task = "CAUSAL_LM" if causal else "SEQ_CLS"
        known = {f.name for f in dataclasses.fields(getattr(library, config))}
        targets = {"target_modules": ["q_proj", "v_proj"] if causal else ["query", "value"]}
        chosen = {k: v for k, v in {**targets, **options}.items() if k in known}
        adapted = library.get_peft_model(inner, getattr(library, config)(task_type=task, **chosen))
        return Made(adapted, tokens, Output(lambda model, batch: model(input_ids=batch[0]).logits))

    return make


def torchvision(name: str, side: int = 64, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        model = import_module("torchvision").models.get_model(name, weights=None, num_classes=CLASSES, **options)
        return Made(model, images(side), Output(first))

    return make


def _maxvit() -> Made:
    kind = import_module("torchvision").models.MaxVit
    model = kind((64, 64), 8, 2, [16, 32], [1, 1], 8, 0.0, num_classes=CLASSES)
    return Made(model, images(64), Output(first))


def _vit() -> Made:
    kind = import_module("torchvision").models.VisionTransformer
    return Made(kind(32, 8, 2, 4, 48, 96, num_classes=CLASSES), images(32), Output(first))


def segmentation(name: str, side: int = 64) -> Callable[[], Made]:
    def make() -> Made:
        models = import_module("torchvision").models
        model = models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES)
        return Made(model, images(side), Output(lambda model, batch: model(batch[0])["out"]))

    return make


def detection(name: str, side: int = 64) -> Callable[[], Made]:
    """Backbone and heads of a detector, without the choice of boxes, which has no gradient."""

    def call(model: Any, batch: Any) -> Any:
        features = model.backbone(batch[0])
        features = list(features.values()) if isinstance(features, dict) else [features]
        if hasattr(model, "head"):
            return list(model.head(features).values())
        boxes = [torch.tensor([[0.0, 0.0, 40.0, 40.0], [8.0, 8.0, 60.0, 50.0]], dtype=batch[0].dtype)] * len(batch[0])
        named = {str(i): t for i, t in enumerate(features[:-1])}
        heads, sizes = model.roi_heads, [(side, side)] * len(batch[0])
        found = heads.box_predictor(heads.box_head(heads.box_roi_pool(named, boxes, sizes)))
        objectness, deltas = model.rpn.head(features)
        rows = [t.view(len(batch[0]), -1) for t in found]
        if heads.mask_predictor is not None:
            masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(named, boxes, sizes)))
            rows.append(masks.reshape(len(batch[0]), -1))
        if heads.keypoint_predictor is not None:
            points = heads.keypoint_predictor(heads.keypoint_head(heads.keypoint_roi_pool(named, boxes, sizes)))
            rows.append(points.reshape(len(batch[0]), -1))
        return [*rows, *objectness, *deltas]

    def make() -> Made:
        models = import_module("torchvision").models
        more = {} if name.startswith("keypoint") else {"num_classes": CLASSES}
        return Made(models.get_model(name, weights=None, weights_backbone=None, **more), images(side), Output(call))

    return make


def smp(name: str, side: int = 64, encoder: str = "resnet18") -> Callable[[], Made]:
    def make() -> Made:
        library = import_module("segmentation_models_pytorch")
        model = library.create_model(name, encoder_name=encoder, encoder_weights=None, classes=CLASSES)
        return Made(model, images(side), Output(first))

    return make


def diffusers(
    name: str, draw: Callable[[int], Any], call: Callable[[nn.Module, Any], Any], **options: Any
) -> Callable[[], Made]:
    def make() -> Made:
        return Made(getattr(import_module("diffusers"), name)(**options), draw, Output(call))

    return make


def noisy(channels: int, side: int = 8, **more: tuple[int, ...]) -> Callable[[int], Any]:
    """An image, a time, and tensors of the given shapes."""
    return lambda n: (
        torch.randn(n, channels, side, side),
        torch.randint(0, 100, (n,)),
        *(torch.randn(n, *shape) for shape in more.values()),
    )


BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "sample_size": 8}

MODELS: dict[str, Callable[[], Made]] = {}
LARGE: dict[str, Callable[[], Made]] = {}
"""Some of them at the size that people use: their own image size; 6 layers of width 512 and 64 tokens."""


def _add(library: str, name: str, make: Callable[[], Made]) -> None:
    assert f"{library}: {name}" not in MODELS, name
    MODELS[f"{library}: {name}"] = make


for _name in (
    *("test_byobnet", "test_convnext", "test_convnext2", "test_convnext3", "test_efficientnet", "test_efficientnet_gn"),
    *("test_efficientnet_ln", "test_efficientnet_evos", "test_mambaout", "test_nfnet", "test_resnet", "test_vit"),
    *("test_vit2", "test_vit3", "test_vit4", "resnet10t", "resnet18", "seresnet18", "skresnet18", "resnetv2_18"),
    *(
        "legacy_seresnet18",
        "res2net50_14w_8s",
        "mobilenetv2_035",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_035",
    ),
    *("mobileone_s0", "efficientnet_lite0", "efficientnet_b0", "tinynet_e", "lcnet_035", "mnasnet_small", "fbnetc_100"),
    *("mixnet_s", "ghostnet_050", "ghostnetv2_100", "hardcorenas_a", "rexnet_100", "regnetx_002", "regnety_002"),
    *("densenet121", "dla46_c", "ese_vovnet19b_slim_dw", "hrnet_w18_small", "repvgg_a0", "repghostnet_050"),
    *("convnext_atto", "convnextv2_atto", "edgenext_xx_small", "starnet_s1", "efficientvit_b0", "mobilevit_xxs"),
    *("mobilevitv2_050", "poolformer_s12", "poolformerv2_s12", "pvt_v2_b0", "mambaout_femto", "repvit_m0_9"),
    *("cs3darknet_focus_s", "hgnetv2_b0", "nf_resnet26", "eca_botnext26ts_256", "halonet26t", "lambda_resnet26t"),
    *("bat_resnext26ts", "visformer_tiny", "focalnet_tiny_srf", "swiftformer_xs", "fastvit_t8", "inception_next_atto"),
):
    _shrunk: dict[str, Any] = {
        "visformer_tiny": {"img_size": 64},
        "lambda_resnet26t": {"img_size": 64},
        "eca_botnext26ts_256": {"img_size": 64},
    }.get(_name, {})
    _side = {"halonet26t": 256, "bat_resnext26ts": 256}.get(_name, 64)
    _add(
        "timm",
        _name,
        timm(_name, _side, **_shrunk) if not _name.startswith("test_vit") else timm(_name, 160, img_size=160),
    )
    if not _name.startswith("test_"):
        LARGE[f"timm: {_name}"] = timm(_name, None)
for _name, _side, _options in (
    ("test_vit_relpos", 64, {"img_size": 64}),
    ("test_coatnet", 64, {"img_size": 64}),
    ("test_maxvit", 64, {"img_size": 64}),
    (
        "deit_tiny_distilled_patch16_224",
        32,
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3},
    ),
    ("beit_base_patch16_224", 32, {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    ("beitv2_base_patch16_224", 32, {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    ("eva02_tiny_patch14_224", 28, {"img_size": 28, "patch_size": 7, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    ("cait_xxs24_224", 32, {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    ("pit_ti_224", 64, {"img_size": 64}),
    ("swin_tiny_patch4_window7_224", 32, {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2)}),
    ("swinv2_tiny_window8_256", 32, {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2)}),
    ("crossvit_9_240", 120, {"img_size": 120}),
    ("convit_tiny", 32, {"img_size": 32, "patch_size": 8, "depth": 3, "local_up_to_layer": 2}),
    ("coat_lite_tiny", 64, {"img_size": 64}),
    ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 192), "window_size": 2}),
    ("gcvit_xxtiny", 64, {"img_size": 64}),
    ("hiera_tiny_224", 64, {"img_size": 64, "stages": (1, 1, 1, 1), "embed_dim": 24}),
    ("mvitv2_tiny", 64, {"img_size": 64}),
    ("nest_tiny", 64, {"img_size": 64}),
    ("twins_svt_small", 64, {"img_size": 64, "depths": (1, 1, 2, 1)}),
    ("volo_d1_224", 64, {"img_size": 64}),
    ("xcit_nano_12_p16_224", 32, {"img_size": 32, "patch_size": 8, "depth": 2}),
    ("mixer_s32_224", 64, {"img_size": 64}),
    ("gmlp_ti16_224", 64, {"img_size": 64}),
    ("resmlp_12_224", 64, {"img_size": 64}),
    ("sequencer2d_s", 64, {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32), "hidden_sizes": (8, 8, 8, 8)}),
    ("tiny_vit_5m_224", 64, {"depths": (1, 1, 2, 1)}),
    ("levit_128s", 64, {"img_size": 64}),
    ("efficientformer_l1", 224, {}),
    ("efficientformerv2_s0", 64, {"img_size": 64}),
    ("tnt_s_legacy_patch16_224", 32, {"img_size": 32, "depth": 2}),
    (
        "vit_relpos_small_patch16_224",
        32,
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3},
    ),
):
    _add("timm", _name, timm(_name, _side, **_options))

for _name, _options in (
    *(
        (n, {})
        for n in ("bert", "roberta", "electra", "albert", "camembert", "xlm-roberta", "ernie", "convbert", "mpnet")
    ),
    *(
        (n, {})
        for n in ("roformer", "rembert", "megatron-bert", "nystromformer", "fnet", "layoutlm", "modernbert", "ibert")
    ),
    *(
        (n, {})
        for n in ("deberta", "deberta-v2", "roc_bert", "data2vec-text", "mobilebert", "esm", "yoso", "squeezebert")
    ),
    ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    ("xlnet", {"max_position_embeddings": None, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    (
        "funnel",
        {"num_hidden_layers": None, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
    ),
    ("longformer", {"attention_window": 8}),
    ("big_bird", {"attention_type": "original_full"}),
    (
        "canine",
        {"upsampling_kernel_size": 4, "num_hash_buckets": 64, "num_hash_functions": 4, "local_transformer_stride": 8},
    ),
    ("xmod", {"languages": ["en_XX"], "default_language": "en_XX"}),
    ("flaubert", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 64}),
):
    if _name == "deberta-v2":
        _options = {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        }
    if _name == "deberta":
        _options = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    if _name in {"mobilebert"}:
        _options = {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
    if _name in {"rembert", "electra", "albert", "convbert", "roformer", "squeezebert"}:
        _options = {"embedding_size": 32, "input_embedding_size": 32, "output_embedding_size": 32}
    _add("transformers", _name, hugging_face(_name, **_options))
    if not _options:
        LARGE[f"transformers: {_name}"] = hugging_face(_name, draw=partial(tokens, length=64), **WIDE)
for _name, _options in (
    *(
        (n, {})
        for n in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "stablelm", "starcoder2")
    ),
    *(
        (n, {})
        for n in ("cohere", "olmo", "olmo2", "granite", "gpt_neox", "opt", "falcon", "persimmon", "smollm3", "glm")
    ),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}),
    ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
    ("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    ("bloom", {"n_layer": 2, "n_head": 4}),
    ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    ("mixtral", {"num_local_experts": 4}),
    (
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}),
    ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    ("granitemoe", {"num_local_experts": 4}),
    ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8}),
    (
        "deepseek_v3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
    ("mamba", {"state_size": 4, "time_step_rank": 4}),
    ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    (
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "num_experts": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    ("rwkv", {"attention_hidden_size": 32}),
    (
        "recurrent_gemma",
        {"lru_width": 32, "head_dim": 8, "block_types": ["recurrent", "attention"], "attention_window_size": 8},
    ),
    ("ctrl", {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64}),
    ("xglm", {"use_cache": False, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}),
    ("biogpt", {}),
):
    _sparse = any("experts" in key for key in _options)
    _add("transformers", _name, language(_name, experts="eager" if _sparse else "", **_options))
    if not _options:
        LARGE[f"transformers: {_name}"] = language(_name, draw=partial(tokens, length=64), **WIDE)
    if _name == "mixtral":
        _add("transformers", "mixtral, grouped products", language(_name, **_options))
for _name, _options in (
    ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}),
    ("bart", {}),
    ("pegasus", {}),
    ("marian", {}),
    (
        "switch_transformers",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_heads": 4,
            "num_experts": 2,
            "expert_capacity": 64,
            "use_cache": False,
        },
    ),
):
    _add("transformers", _name, translation(_name, **_options))
for _name, _side, _options in (
    ("vit", 32, {"patch_size": 8}),
    ("deit", 32, {"patch_size": 8}),
    ("beit", 32, {"patch_size": 8, "use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
    ("swin", 32, {**OWN, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    ("swinv2", 32, {**OWN, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    ("convnext", 32, {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    ("convnextv2", 32, {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    ("resnet", 32, {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    (
        "regnet",
        32,
        {
            **OWN,
            "layer_type": "x",
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "groups_width": 4,
        },
    ),
    ("mobilevit", 64, {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 16, 24, 24, 24, 32]}),
    ("poolformer", 64, {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
    ("pvt_v2", 64, {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}),
    ("dinov2", 32, {"patch_size": 8}),
    (
        "levit",
        64,
        {
            **OWN,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    ("segformer", 64, {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}),
):
    _own = {"deit": "DeiTForImageClassification", "levit": "LevitForImageClassification"}
    _add("transformers", _name, vision(_name, _side, _own.get(_name, "ImageClassification"), **_options))
for _name in ("wav2vec2", "hubert", "wavlm", "unispeech"):
    _add("transformers", _name, audio(_name))
_add("transformers", "clip", two_towers("clip"))
_add("transformers", "siglip", two_towers("siglip"))

for _name, _base, _options in (
    ("LoraConfig", "bert", {"r": 4}),
    ("LoraConfig", "llama", {"r": 4, "use_rslora": True}),
    ("LoraConfig", "llama", {"r": 4, "use_dora": True}),
    ("AdaLoraConfig", "bert", {"init_r": 4, "target_r": 2, "total_step": 10}),
    ("LoHaConfig", "bert", {"r": 4}),
    ("LoKrConfig", "bert", {"r": 4}),
    ("OFTConfig", "bert", {"r": 0, "oft_block_size": 8}),
    ("BOFTConfig", "bert", {"boft_block_size": 8}),
    ("IA3Config", "llama", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    ("VeraConfig", "bert", {"r": 8}),
    ("FourierFTConfig", "bert", {"n_frequency": 20}),
    ("VBLoRAConfig", "bert", {"r": 2, "num_vectors": 8, "vector_length": 4}),
    ("HRAConfig", "bert", {"r": 4}),
    ("MissConfig", "bert", {"r": 4}),
    ("RandLoraConfig", "bert", {"r": 4}),
    ("ShiraConfig", "bert", {"r": 2}),
    ("C3AConfig", "bert", {"block_size": 8}),
    ("LNTuningConfig", "bert", {"target_modules": ["LayerNorm"]}),
    ("PromptTuningConfig", "bert", {"num_virtual_tokens": 4}),
    ("PrefixTuningConfig", "llama", {"num_virtual_tokens": 4}),
    ("PromptEncoderConfig", "bert", {"num_virtual_tokens": 4, "encoder_hidden_size": 16}),
    ("AdaptionPromptConfig", "llama", {"adapter_len": 4, "adapter_layers": 1, "target_modules": None}),
):
    _label = _name.removesuffix("Config") + {"use_rslora": " rank-stabilised", "use_dora": " DoRA"}.get(
        list(_options)[-1], ""
    )
    _add("peft", f"{_label} on {_base}", peft(_name, _base, **_options))

for _name in (
    *("alexnet", "resnet18", "resnext50_32x4d", "densenet121", "squeezenet1_1", "googlenet"),
    *("inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0"),
    *("regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t"),
):
    _side = {"inception_v3": 96, "alexnet": 64}.get(_name, 64)
    _add(
        "torchvision",
        _name,
        torchvision(_name, _side, **({"init_weights": False} if _name in {"googlenet", "inception_v3"} else {})),
    )
    if _name not in {"googlenet", "inception_v3"}:
        LARGE[f"torchvision: {_name}"] = torchvision(_name, 224)
_add("torchvision", "maxvit", _maxvit)
_add("torchvision", "vit", _vit)
for _name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
    _add("torchvision", _name, segmentation(_name))
for _name in (
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"),
):
    _add("torchvision", _name, detection(_name))


for _name in ("unet", "fpn", "linknet", "pspnet", "deeplabv3plus", "manet", "unetplusplus"):
    _add("segmentation_models_pytorch", _name, smp(_name))
_add("segmentation_models_pytorch", "segformer", smp("segformer", encoder="timm-mobilenetv3_small_minimal_100"))

_add(
    "diffusers",
    "UNet2DModel",
    diffusers(
        "UNet2DModel",
        noisy(3),
        lambda m, b: m(b[0], b[1]).sample,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        **BLOCKS,
    ),
)
_add(
    "diffusers",
    "UNet2DConditionModel",
    diffusers(
        "UNet2DConditionModel",
        noisy(4, text=(6, 16)),
        lambda m, b: m(b[0], b[1], b[2]).sample,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        **BLOCKS,
    ),
)
_add(
    "diffusers",
    "AutoencoderKL",
    diffusers(
        "AutoencoderKL",
        noisy(3, 16),
        lambda m, b: m(b[0]).sample,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **BLOCKS,
    ),
)
_add(
    "diffusers",
    "DiTTransformer2DModel",
    diffusers(
        "DiTTransformer2DModel",
        lambda n: (*noisy(4)(n), torch.randint(0, 10, (n,))),
        lambda m, b: m(b[0], timestep=b[1], class_labels=b[2]).sample,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        dropout=0.0,
    ),
)
_add(
    "diffusers",
    "SD3Transformer2DModel",
    diffusers(
        "SD3Transformer2DModel",
        noisy(4, text=(6, 16), pooled=(16,)),
        lambda m, b: m(b[0], b[2], b[3], b[1]).sample,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    ),
)


def made(name: str, *, large: bool = False) -> Made:
    """Make a model in eval mode, its parameters and running statistics drawn so that every one matters."""
    torch.manual_seed(0)
    found = (LARGE if large else MODELS)[name]()
    found.model.eval()
    with torch.no_grad():
        for p in found.model.parameters():
            if (
                p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all())
            ):  # zeros and ones of a new model
                p.add_(torch.randn_like(p) * 0.1)
        for module in found.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
    if any(hasattr(module, "rel_indices") for module in found.model.modules()):  # a buffer made by the first pass
        found.model(*found.draw(1))
    return found


def double(batch: Any) -> Any:
    return map_tensors(batch, lambda t: t.double() if t.is_floating_point() else t)
