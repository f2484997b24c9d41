"""What both sides of the benchmark train: model shape, data, LoRA. Standard library only."""

import json
import random
from pathlib import Path

LORA_RANK, LORA_ALPHA = 8, 16
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0
ROWS = 4
EOS, FIRST_WORD = 2, 3

SHAPES = {
    "small": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
              "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1408,
              "vocab_size": 32000},
    "llama3-8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                  "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336,
                  "vocab_size": 128256},
    # For --quick: seconds, and no meaning.
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 176, "vocab_size": 512},
}


def write_model(directory, shape, max_positions, dtype):
    """config.json and a tokenizer with one word a token; both sides draw the weights."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPES[shape],
        "max_position_embeddings": max_positions, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": EOS, "torch_dtype": dtype,
        "initializer_range": 0.02, "use_cache": False}, indent=1))
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate(special)}
    vocabulary.update({f"w{i}": i for i in range(FIRST_WORD, SHAPES[shape]["vocab_size"])})
    (directory / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": token, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}
                         for i, token in enumerate(special)],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>"}))


def write_data(path, shape, length):
    """Rows that are `length` tokens each once the trainer has put the EOS behind the text."""
    rng = random.Random(length)
    with path.open("w") as file:
        for _ in range(ROWS):
            words = [f"w{rng.randrange(FIRST_WORD, SHAPES[shape]['vocab_size'])}"
                     for _ in range(length - 1)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def read_data(path):
    """The same rows as token ids."""
    return [[int(word[1:]) for word in json.loads(line)["text"].split()] + [EOS]
            for line in Path(path).read_text().splitlines()]
