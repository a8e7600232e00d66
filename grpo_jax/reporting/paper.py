"""What DeepSeekMath (arXiv:2402.03300) says of each setting: what it states, what it leaves open, what it has not.

A key is the place of a setting (`rl.num_generations`), or of a setting of a kind its file (`algorithms.grpo.beta`,
`data.sources.jsonl.path`); * stands for any part. Where several match, the first of the tables below counts, and in a
table a key before its patterns. A test holds the tables against the fields of every `Config`, so that a new setting
must be given its place here.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

Relation = Literal["stated", "open", "beyond", "apart"]
"""Of a setting to the paper: it states the value, leaves it open, has nothing of the kind, or the setting does not
touch what is learnt or measured."""


class Says(NamedTuple):
    """What the paper says of a setting."""

    relation: Relation
    text: str


STATED = {
    "sft.max_steps": "500 (section 3.2)",
    "sft.batch_size": "256 (section 3.2)",
    "sft.max_length": "4K tokens (section 3.2)",
    "sft.packing": "examples concatenated at random up to 4K tokens (section 3.2)",
    "sft.optimizer.learning_rate": "5e-5 (section 3.2)",
    "sft.optimizer.lr_scheduler_type": "constant (section 3.2)",
    "reward_model.optimizer.learning_rate": "2e-5 (section 4.2)",
    "reward_model.model_name_or_path": "the base model (section 4.2)",
    "reward_model.replay": "10 % of historical data (section 4.1.4)",
    "rl.continue_reward_model": "continuous training with replay (section 4.1.4 and line 12 of algorithm 1)",
    "rl.continue_reward_model.replay": "10 % of historical data (section 4.1.4)",
    "rl.prompts_per_step": "a training batch of 1024: 16 questions, if outputs are meant (section 4.2)",
    "rl.num_generations": "64 (section 4.2)",
    "rl.num_iterations": "1 update per exploration (section 4.2)",
    "rl.sampling.max_completion_length": "max length 1024 (section 4.2)",
    "rl.optimizer.learning_rate": "1e-6 (section 4.2)",
    "algorithms.grpo.beta": "0.04 (section 4.2)",
    "algorithms.grpo.kl": "k3 (eq. 4)",
    "algorithms.grpo.kl_in": "loss (eq. 3)",
    "algorithms.grpo.scale_rewards": "the standard deviation of the group (sections 4.1.2 and 4.1.3)",
    "algorithms.grpo.epsilon_high": "one epsilon for both sides (eq. 3)",
    "algorithms.ppo.epsilon_high": "one epsilon for both sides (eq. 1)",
    "algorithms.dpo.length_average": "the mean over tokens (eq. 12)",
    "algorithms.dpo.pairs_from": "the SFT model (section 5.2.1)",
    "algorithms.online_rft.beta": "no KL term (eq. 10)",
    "algorithms.rft.beta": "no KL term (eq. 8)",
    "rewards.accuracy.correct": "1 (eq. 10)",
    "rewards.accuracy.wrong": "0 (eq. 10)",
    "rewards.exact.correct": "1 (eq. 10)",
    "rewards.exact.wrong": "0 (eq. 10)",
    "rewards.learned.supervision": "outcome (section 4.1.2), process (section 4.1.3)",
    "evaluation.num_samples": "64 (figure 7)",
    "evaluation.k": "1, 4, 8, 16, 32, 64 (figure 7)",
    "evaluation.sampling.temperature": "0.7 for Maj@K and Pass@K (figure 7)",
}

OF_GRPO = frozenset(
    {
        "rl.prompts_per_step",
        "rl.num_generations",
        "rl.num_iterations",
        "rl.sampling.max_completion_length",
        "rl.optimizer.learning_rate",
    }
)
"""What section 4.2 states of GRPO, and says of no other method."""

OPEN = {
    "model.dtype": "not said",
    "prompt.format": "not said; its evaluation code writes User: and Assistant:",
    "prompt.template": "not said; its evaluation code writes User: and Assistant:",
    "prompt.suffix": "not said of training; its evaluation code asks for steps and a box",
    "prompt.system": "not said; its evaluation code has none",
    "prompt.max_prompt_length": "whether the max length of 1024 counts the prompt is not said",
    "prompt.overlong_prompts": "not said",
    "sft.overlong_examples": "not said",
    "label.num_solutions": "not said; Math-Shepherd, which it follows, has 15 of each of its models",
    "label.num_completions": "not said; Math-Shepherd, which it follows, has 8",
    "label.sampling.*": "not said",
    "reward_model.supervision": "one for outcomes, one for processes; their data and loss are not said",
    "reward_model.target": "not said; Math-Shepherd, which it follows, takes hard labels",
    "reward_model.head": "not said",
    "reward_model.good_token": "not said; Math-Shepherd: +",
    "reward_model.bad_token": "not said; Math-Shepherd: -",
    "reward_model.step_tag": "not said; Math-Shepherd writes one",
    "reward_model.max_steps": "epochs are not said",
    "reward_model.batch_size": "not said",
    "reward_model.max_length": "not said",
    "reward_model.packing": "not said",
    "reward_model.held_out": "not said",
    "rl.iterations": "up to 2 more in figure 6; of the released model not said",
    "rl.continue_reward_model.num_problems": "not said",
    "rl.continue_reward_model.num_solutions": "not said",
    "rl.continue_reward_model.num_completions": "not said; Math-Shepherd, which it follows, has 8",
    "rl.continue_reward_model.old_labels": "what the model has learnt from before",
    "rl.continue_reward_model.target": "not said; Math-Shepherd, which it follows, takes hard labels",
    "rl.continue_reward_model.held_out": "not said",
    "rl.continue_reward_model.max_steps": "not said",
    "rl.continue_reward_model.batch_size": "not said",
    "rl.continue_reward_model.max_length": "not said",
    "rl.continue_reward_model.packing": "not said",
    "rl.continue_reward_model.optimizer.learning_rate": "2e-5 of the first training (section 4.2)",
    "rl.max_steps": "not said; figure 5 shows some 8,500, figure 6 has ticks at 1300, 2300, ...",
    "rl.mask_truncated_completions": "whether outputs that were cut are trained on is not said",
    "rl.dead_groups": "groups of equal rewards, whose deviation is 0, are not mentioned",
    "rl.sampling.temperature": 'not said: "a naive nucleus sampling"',
    "rl.sampling.top_p": 'not said: "a naive nucleus sampling"',
    "rl.sampling.top_k": 'not said: "a naive nucleus sampling"',
    "rl.sampling.min_p": 'not said: "a naive nucleus sampling"',
    "rl.sampling.stop": "not said",
    "*.optimizer.lr_scheduler_type": "not said",
    "*.optimizer.min_lr_ratio": "not said",
    "*.optimizer.warmup_steps": "not said; 2,000 steps of pre-training",
    "*.optimizer.weight_decay": "not said; 0.1 of pre-training",
    "*.optimizer.adam_beta1": "not said; 0.9 of pre-training",
    "*.optimizer.adam_beta2": "not said; 0.95 of pre-training",
    "*.optimizer.adam_epsilon": "not said",
    "*.optimizer.max_grad_norm": "not said",
    "algorithms.grpo.epsilon": "in eq. 3 without a value",
    "algorithms.ppo.epsilon": "in eq. 1 without a value",
    "algorithms.ppo.beta": "in eq. 2 without a value",
    "algorithms.ppo.gamma": "not said",
    "algorithms.ppo.lam": "not said",
    "algorithms.ppo.value_clip": "how values are learnt is not said",
    "algorithms.ppo.whiten": "not said",
    "algorithms.ppo.value_optimizer.*": "how values are learnt is not said",
    "algorithms.dpo.beta": "in eq. 12 without a value",
    "algorithms.dpo.pairs": "pairs of a question are not said",
    "algorithms.*rft.threshold": "how an answer is judged is not said",
    "algorithms.rft.distinct": "whether equal outputs count once is not said",
    "rewards.accuracy.ungradable": "not said",
    "rewards.*.weight": "not said; one reward at a time",
    "rewards.learned.value": "how a score becomes a reward is not said",
    "rewards.learned.whole": "whether outcome rewards come from a model of outcomes or of steps is not said",
    "rewards.learned.unfinished": "what an output that was cut is worth is not said",
    "rewards.step_match.*": "what ends a step is not said; the paper has no rule for steps",
    "evaluation.sampling.*": "not said; of the released results 1024 tokens and top_p 1",
}

ADDED = {
    "another method than the paper's": (
        "algorithms.cispo.*",
        "algorithms.dapo.*",
        "algorithms.dr_grpo.*",
        "algorithms.gspo.*",
        "algorithms.reinforce_plus_plus.*",
        "algorithms.rloo.*",
        "algorithms.*.delta",
        "algorithms.*.force_k1_loss",
        "algorithms.*rft.kl",
        "algorithms.*rft.kl_in",
        "rl.entropy_coef",
        "rl.sync_ref_model",
        "rl.ref_model_*",
        "rl.refill_rounds",
    ),
    "completions of another policy, or of rounded weights": (
        "rl.steps_off_policy",
        "rl.rollout_weights",
        "rl.importance_cap",
        "rl.importance_mode",
    ),
    "another reward than the paper's": ("rewards.format.*", "rewards.length.*", "rewards.preferred.*"),
    "how a rule reads and how long it may take": (
        "rewards.accuracy.*time_limit",
        "rewards.exact.form",
        "rewards.exact.after",
        "rewards.python.*",
    ),
    "which reward model": ("rewards.learned.path",),
    "which problems, benchmarks or labels": (
        "data.*",
        "evaluation.benchmarks*",
        "reward_model.*labels",
        "evaluation.source",
    ),
    "what judges, or scores, what is measured": ("evaluation.reward", "evaluation.scorer"),
    "programs within completions, which the paper has in its data alone": ("*.tools", "tools.*"),
    "the policy": ("model.model_name_or_path", "model.tokenizer_name_or_path", "model.architecture*", "model.lora*"),
    "few-shot examples, and what a template writes": ("prompt.example*", "prompt.template_file", "prompt.date"),
    "the noise": ("seed",),
}
"""What the paper has nothing of, by what it is."""

APART = {
    "how it is computed; the result is one": (
        "mesh.*",
        "model.*_kernel",
        "model.decode_*",
        "model.remat",
        "model.scan_layers",
        "*.batch_prompts",
        "*.decode_rows",
        "*.head_chunk",
        "*.microbatches",
        "*.sampling.cache_block",
        "rl.fused_steps",
        "rl.length_buckets",
        "rl.sample_parts",
        "tools.*.workers",
        "tools.*.sandbox",
    ),
    "what is written, and when the run gives up": (
        "output_dir",
        "report_to",
        "*.eval_steps",
        "*.logging_steps",
        "*.save_steps",
        "*.save_total_limit",
        "rl.best_metric",
        "rl.max_logprob_gap",
        "rl.max_skipped_steps",
        "rl.rollout_steps",
    ),
}
"""What does not touch what is learnt or measured, and why."""

EXACT = {key: Says("stated", text) for key, text in STATED.items()}
EXACT |= {key: Says("open", text) for key, text in OPEN.items() if "*" not in key}
PATTERNS = [(key, Says("apart", text)) for text, keys in APART.items() for key in keys]
PATTERNS += [(key, Says("beyond", text)) for text, keys in ADDED.items() for key in keys]
PATTERNS += [(key, Says("open", text)) for key, text in OPEN.items() if "*" in key]


@functools.cache
def says(key: str) -> Says | None:
    """What the paper says of a setting; None for one that is not in the tables."""
    return EXACT.get(key) or next((found for pattern, found in PATTERNS if fnmatchcase(key, pattern)), None)
