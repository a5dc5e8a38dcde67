"""Makes a tiny mixture-of-experts model from the folder of another tiny model, whose tokenizer it takes. Runs in the Python of
the engines."""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM


def make(source: Path, target: Path, seed: int = 7) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(file, target)
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(seed)
    # Enlarged, so that greedy texts vary with the prompt: two engines agree only over the same KV cache.
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=32, head_dim=32, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=4096,
        initializer_range=0.5, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, sliding_window=None, tie_word_embeddings=False)
    model = MixtralForCausalLM(config).to(torch.float32)
    model.generation_config.do_sample = False
    model.save_pretrained(target, safe_serialization=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
