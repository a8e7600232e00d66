"""Write a small random Qwen2 directory in Hugging Face form, without torch and without a network.

    python tests/make_random_qwen2.py OUT                  # hidden 64, 2 layers, float32
    python tests/make_random_qwen2.py OUT --half-billion   # the shape of Qwen2.5-0.5B in bfloat16

The tokenizer is a byte-level BPE trained on the text below, with Qwen2's special tokens, a ChatML template
like Qwen2.5-Instruct's and `<|im_end|>` as end of sequence; generation_config.json lists both ends. The
half-billion model keeps Qwen2.5's vocabulary of 151936 rows, of which the tokenizer uses the first 512.
"""

import argparse
import sys

import jax
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.hf import save_params
from grpo_jax.models.parameters import count, init_params
from grpo_jax.models.rope import Rope
from grpo_jax.sharding import make_mesh

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen2's splitting of text before merging: contractions, letters, single digits, punctuation, space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TEXT = """\
Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many
clips did Natalia sell altogether in April and May? Natalia sold 48/2 = 24 clips in May. Altogether she
sold 48+24 = 72 clips. Please reason step by step, and put your final answer within \\boxed{}. The answer
is \\boxed{72}. #### 72 Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of
babysitting. How much did she earn? Betty is saving money for a new wallet which costs $100. Betty has
only half of the money she needs. Her parents decided to give her $15 for that purpose, and her
grandparents twice as much as her parents. How much more money does Betty need to buy the wallet? James
writes a 3-page letter to 2 different friends twice a week. How many pages does he write a year? Each
letter has 3*2 = 6 pages, so he writes 6*2 = 12 pages every week and 12*52 = 624 pages a year. Let x be
the number of apples in each box. Then 3x + 5 = 20, therefore 3x = 15 and x = 5. First, we find the total
cost; next, we subtract what was paid; finally, we divide by the number of people. You are a helpful
assistant. system user assistant What is 12 + 7 - 3? 12 + 7 = 19, and 19 - 3 = 16. Mark has a garden with
flowers of three colors. Ten of them are yellow, and there are 80% more of those in purple. How many
flowers does Mark have in his garden?
"""


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` entries, Qwen2's special tokens among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))  # after the text's tokens, as in Qwen2
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="directory to make; it must not exist")
    parser.add_argument("--vocab", type=int, default=512, help="rows of the embedding")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=16)
    parser.add_argument("--mlp", type=int, default=176)
    parser.add_argument("--untied", action="store_true", help="an output head of its own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half-billion", action="store_true", help="the shape of Qwen2.5-0.5B, in bfloat16")
    args = parser.parse_args(argv)
    if args.half_billion:
        vars(args).update(vocab=151936, hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, mlp=4864)
        vars(args).update(dtype="bfloat16")
    return args


def main(argv: list[str]) -> None:
    """Make the directory and say what is in it."""
    args = parse(argv)
    tokenizer = make_tokenizer(min(args.vocab, 512))
    config = DecoderConfig(
        family="qwen2",
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        num_layers=args.layers,
        num_heads=args.heads,
        num_kv_heads=args.kv_heads,
        head_dim=args.head_dim,
        mlp_size=args.mlp,
        rope=Rope(rope_theta=1_000_000.0),
        tie_word_embeddings=not args.untied,
        qkv_bias=True,
        max_positions=32768,
    )
    params = init_params(config, jax.random.key(args.seed), make_mesh(MeshConfig(), jax.devices()[:1]))
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    generation = {"do_sample": True, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    generation |= {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    save_params(params, config, tokenizer, args.out, dtype=args.dtype, generation_config=generation)
    size = f"{count(config):,} parameters in {args.dtype}"
    print(f"{args.out}: Qwen2, {size}, {len(tokenizer)} tokens, ends {ends}")


if __name__ == "__main__":
    main(sys.argv[1:])
