"""Save small random-weight checkpoints as the hub has them: a model beside its real processor, tokenizer and chat template."""

from collections.abc import Callable
from pathlib import Path

import pytest
from families.base import peaked
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    processing_utils,
)
from transformers.video_processing_utils import VideoProcessorMixin

__all__ = ["ARCHITECTURES", "Videos", "save", "without_torchvision"]

DECODER = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2)
DECODER |= dict(max_position_embeddings=1024)
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
LLAVA_CHAT = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS3_CHAT = (  # writes the first token itself
    "<|begin_of_text|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Videos(VideoProcessorMixin):
    """Stand in for the video processor of Qwen2.5-VL, which needs torchvision; no test shows it a video."""

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> "Videos":
        """Return one, whatever is asked for."""
        return cls()


def without_torchvision(patch: pytest.MonkeyPatch) -> None:
    """Let a processor with a video part load where torchvision is not installed."""
    patch.setattr("transformers.models.auto.video_processing_auto.AutoVideoProcessor", Videos)
    patch.setattr(processing_utils.transformers_module, "VideoProcessorMixin", VideoProcessorMixin, raising=False)


def tokenizer(*special: str, start: str | None = None, end: str, pad: str, **named: str) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on a few sentences, with these special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokens = list(dict.fromkeys([*filter(None, (pad, start, end)), *special]))
    sentences = [
        "Please describe this image in detail.",
        "Is there a dog in the image? Yes, no.",
        "USER: ASSISTANT: user assistant",
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        sentences * 3, trainers.BpeTrainer(vocab_size=320, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    )
    if start:
        ids = [(start, bpe.token_to_id(start))]
        bpe.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=ids)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=start, eos_token=end, pad_token=pad, extra_special_tokens=named,
        clean_up_tokenization_spaces=False, padding_side="right",
    )  # fmt: skip
    fast.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    return fast


def llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-1.5: every picture is cropped to 64 x 64 and gives 16 tokens."""
    words = tokenizer("<image>", start="<s>", end="</s>", pad="<pad>", image_token="<image>")
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor = LlavaProcessor(
        pictures, words, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=64, patch_size=16),
        text_config=LlamaConfig(**DECODER, vocab_size=len(words)), image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL: a picture keeps its shape, and gives 9 to 36 tokens of 28 x 28 pixels."""
    marks = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(*marks, end="<|im_end|>", pad="<|endoftext|>")
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 168 * 168})
    processor = Qwen2_5_VLProcessor(pictures, words, Videos(), chat_template=QWEN_CHAT)
    ids = dict(zip(("start", "end", "image", "video"), words.convert_tokens_to_ids(marks[1:]), strict=True))
    vision = dict(depth=2, num_heads=4, hidden_size=32, intermediate_size=48, out_hidden_size=48, window_size=56)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = Qwen2_5_VLConfig(
        vision_config=vision | dict(fullatt_block_indexes=[1]),
        text_config=DECODER | dict(vocab_size=len(words), rope_parameters=rope, bos_token_id=None, eos_token_id=None),
        image_token_id=ids["image"], video_token_id=ids["video"], vision_start_token_id=ids["start"],
        vision_end_token_id=ids["end"],
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config), processor


def idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics3: a picture is cut into tiles of 32 x 32, up to 3 x 3, and a thumbnail; each gives 4 tokens."""
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    marks += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    words = tokenizer(*marks, start="<|begin_of_text|>", end="<|end_of_text|>", pad="<|pad|>")
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(pictures, words, image_seq_len=4, chat_template=IDEFICS3_CHAT)
    config = Idefics3Config(
        vision_config=TOWER | dict(image_size=32, patch_size=8), scale_factor=2,
        text_config=LlamaConfig(**DECODER, vocab_size=len(words), pad_token_id=words.pad_token_id),
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config), processor


ARCHITECTURES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": llava,
    "qwen2_5_vl": qwen2_5_vl,
    "idefics3": idefics3,
}


def save(architecture: str, folder: Path) -> Path:
    """Save the checkpoint of an architecture, in float32, with peaked attention; return its folder."""
    model, processor = ARCHITECTURES[architecture]()
    words = processor.tokenizer
    peaked(model, 0.18)
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = words.eos_token_id, words.pad_token_id
    config.bos_token_id = words.bos_token_id
    marks = [token for token in words.added_tokens_decoder if token != words.eos_token_id]
    config.suppress_tokens = marks  # placeholders and padding are no words
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
