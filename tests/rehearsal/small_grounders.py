"""The grounders' networks: narrow, with random weights, in the files and with the keys of the true repositories."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from rehearsal import small_tokenizers as words_of
from rehearsal.small_pipelines import as_before_five
from rehearsal.small_tokenizers import write_json

_SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_LOOKS = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098}


def grounding_dino(folder: Path) -> None:
    words = words_of.bert(folder)
    swin = transformers.SwinConfig(
        image_size=64, window_size=2, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], out_indices=[2, 3, 4]
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config=transformers.BertConfig(vocab_size=words, num_hidden_layers=1, **_SMALL),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=1,
        init_std=0.3,
    )
    _save(transformers.GroundingDinoForObjectDetection(config), folder)
    looks = {
        "do_convert_annotations": True,
        "do_pad": True,
        "format": "coco_detection",
        "image_processor_type": "GroundingDinoImageProcessor",
        "processor_class": "GroundingDinoProcessor",
        "resample": 2,
        "size": {"longest_edge": 96, "shortest_edge": 64},
    }
    write_json(folder / "preprocessor_config.json", looks | _LOOKS | _IMAGENET)


def sam2(folder: Path) -> None:
    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[2, 2],
    )
    config = transformers.Sam2Config(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=hiera,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(
            hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    model = _spread(transformers.Sam2Model(config))
    with torch.no_grad():
        model.mask_decoder.upscale_conv2.bias[0] += 3
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.bias[0] -= 0.1  # so that masks leave some of a picture out
    _save(model, folder)
    looks = {
        "do_convert_rgb": True,
        "image_processor_type": "Sam2ImageProcessorFast",
        "mask_size": {"height": 256, "width": 256},
        "processor_class": "Sam2Processor",
        "resample": 2,
        "size": {"height": 64, "width": 64},
    }
    write_json(folder / "preprocessor_config.json", looks | _LOOKS | _IMAGENET)
    write_json(
        folder / "processor_config.json",
        {"point_pad_value": -10, "processor_class": "Sam2Processor", "target_size": 64},
    )


def sam3(folder: Path) -> None:
    words = words_of.clip(folder, length=32, whole=True)
    vit = transformers.Sam3ViTConfig(
        num_hidden_layers=2,
        image_size=56,
        patch_size=14,
        window_size=2,
        global_attn_indexes=[1],
        pretrain_image_size=28,
        **_SMALL,
    )
    text = transformers.CLIPTextConfig(
        vocab_size=words, projection_dim=16, num_hidden_layers=1, max_position_embeddings=32, **_ends(words), **_SMALL
    )
    config = transformers.Sam3Config(
        vision_config=transformers.Sam3VisionConfig(
            backbone_config=vit, fpn_hidden_size=32, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]
        ),
        text_config=text,
        geometry_encoder_config={"num_layers": 1, **_SMALL},
        detr_encoder_config={"num_layers": 1, **_SMALL},
        detr_decoder_config={"num_layers": 1, "num_queries": 6, **_SMALL},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    _save(_spread(transformers.Sam3Model(config)), folder)
    looks = {
        "do_convert_rgb": True,
        "image_processor_type": "Sam3ImageProcessorFast",
        "mask_size": {"height": 16, "width": 16},
        "resample": 2,
        "size": {"height": 56, "width": 56},
    }
    whole = {"point_pad_value": -10, "processor_class": "Sam3Processor", "target_size": 56}
    write_json(folder / "processor_config.json", whole | {"image_processor": looks | _LOOKS | _HALVES})


def clipseg(folder: Path) -> None:
    words = words_of.clip(folder)
    text = transformers.CLIPSegTextConfig(vocab_size=words, num_hidden_layers=1, **_ends(words), **_SMALL)
    vision = transformers.CLIPSegVisionConfig(num_hidden_layers=2, image_size=32, patch_size=8, **_SMALL)
    config = transformers.CLIPSegConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    _save(_spread(transformers.CLIPSegForImageSegmentation(config)), folder)
    looks = {
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_processor_type": "ViTImageProcessor",
        "processor_class": "CLIPSegProcessor",
        "resample": 2,
        "size": {"height": 32, "width": 32},
    }
    write_json(folder / "preprocessor_config.json", looks | _LOOKS | _IMAGENET)


def _ends(words: int) -> dict[str, int]:
    return {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}


def _save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    as_before_five(folder / "config.json")


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """The model with larger weights, so that scores and masks differ from each other."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter += torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 / 2
    return model
