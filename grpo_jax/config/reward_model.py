"""The sections about reward models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from grpo_jax.config.parts import Count, Kind, OptimizerConfig, Positive, SamplingConfig, Share, config


@config
class LabelConfig:
    """Labels for reward models without people: what becomes of each step of a solution (arXiv:2312.08935)."""

    source: Annotated[Any, Kind("data.sources")]
    """Problems with answers."""
    reward: Annotated[Any, Kind("rewards")]
    """What decides whether an answer is right: a reward above 0.5."""
    num_solutions: Positive = 15
    """Solutions of one problem (Math-Shepherd: 15 of each of its models); equal ones are labelled once."""
    num_completions: Count = 8
    """Completions N of each beginning of a solution (Math-Shepherd: 8); 0: whole solutions are labelled, no steps."""
    batch_prompts: Positive = 64
    """Problems, or beginnings, decoded at once."""
    decode_rows: Count = 0
    """Rows decoded at once, refilled from the completions that wait as theirs end; 0: all of a batch. Same tokens."""
    sampling: SamplingConfig = SamplingConfig()
    """How solutions and completions are drawn; the length is of both together."""


@config
class RewardModelConfig:
    """A reward model trained on labelled solutions (arXiv:2402.03300, section 4.1.2 to 4.1.4; arXiv:2312.08935)."""

    labels: Annotated[Any, Kind("data.labels")] | None = None
    """Labelled solutions, in a published form or ours; null: what the `label` stage of this run writes."""
    eval_labels: Annotated[Any, Kind("data.labels")] | None = None
    """Labelled solutions to be measured on; null: `held_out` of `labels`."""
    old_labels: Annotated[Any, Kind("data.labels")] | None = None
    """Labelled solutions of before, of which some are learnt again beside `labels` (iterative GRPO); null: none."""
    replay: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.1
    """Share of `old_labels` in the mixture (paper: 10 % of historical data)."""
    held_out: Share = 0.05
    """Share of the questions of `labels` that are measured on and not learnt from; unused with `eval_labels`."""
    supervision: Literal["process", "outcome", "preference"] = "process"
    """What is learnt: each step at its end, the whole at its last token (both by cross-entropy), or which of two
    solutions is better (Bradley-Terry)."""
    target: Literal["hard", "soft"] = "hard"
    """Of shares: 1 for any above 0 (Math-Shepherd's choice), or the share itself."""
    head: Literal["scalar", "two_token"] = "scalar"
    """A new head of one number, or the language model's with two tokens that mean good and bad (Math-Shepherd)."""
    good_token: str = " +"
    """Of head two_token: one token."""
    bad_token: str = " -"
    """Of head two_token: one token."""
    step_tag: str | None = None
    """Written behind each step to score it there (Math-Shepherd: " ки"); null: the score is at a step's own end."""
    model_name_or_path: str | None = None
    """A language or reward model of the run's tokenizer to start from (the paper: its base model); null: the policy as
    the stages before leave it."""
    max_steps: Positive = 500
    """Updates."""
    batch_size: Positive = 64
    """Rows an update; with packing a row holds several solutions."""
    max_length: Positive = 4096
    """Tokens a row; longer solutions are left out, and how many is said."""
    packing: bool = True
    """Put several solutions in a row; they do not see one another."""
    microbatches: Positive = 1
    """Parts into which an update's rows are split to save memory; the gradient is the same."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5)
    """AdamW; the paper's reward model has 2e-5."""
    logging_steps: Positive = 10
    """A line of metrics every so many steps."""
    eval_steps: Count = 100
    """Measured on held-out solutions every so many steps, and at the end; 0: only at the end."""
    save_steps: Count = 100
    """A checkpoint every so many steps, and one at the end; 0: only at the end."""
    save_total_limit: Positive = 2
    """Checkpoints kept; the newest is always among them."""


@config
class ContinueConfig:
    """The reward model goes on learning between outer iterations: line 12 of Algorithm 1 (arXiv:2402.03300, 4.1.4).

    What kind of model it is, it brings along: its head, and whether it scores steps or whole solutions.
    """

    reward: Annotated[Any, Kind("rewards")]
    """What decides whether an answer is right: a reward above 0.5."""
    num_problems: Positive = 1024
    """Problems of `rl.source` for which the policy writes fresh solutions, in each iteration others."""
    num_solutions: Positive = 8
    """Solutions of one problem, sampled as `rl.sampling` says; equal ones are labelled once."""
    num_completions: Positive = 8
    """Of a model of steps: completions N of each beginning of a solution, by the policy (Math-Shepherd: 8)."""
    batch_prompts: Positive = 64
    """Problems, or beginnings, decoded at once."""
    decode_rows: Count = 0
    """Rows decoded at once, refilled from the completions that wait as theirs end; 0: all of a batch. Same tokens."""
    old_labels: Annotated[Any, Kind("data.labels")] | None = None
    """What the reward model has learnt from before this run; null: what section `reward_model` learns from."""
    replay: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.1
    """Share of old solutions in the mixture (paper: 10 % of historical data), those of all iterations before alike."""
    target: Literal["hard", "soft"] = "hard"
    """Of shares: 1 for any above 0 (Math-Shepherd's choice), or the share itself."""
    held_out: Share = 0.05
    """Share of the questions that are not learnt from: on the fresh solutions of these, the model is measured before
    and after."""
    max_steps: Positive = 100
    """Updates in one iteration; the optimizer and its schedule begin anew in each."""
    batch_size: Positive = 64
    """Rows an update; with packing a row holds several solutions."""
    max_length: Positive = 4096
    """Tokens a row; at least those of the longest prompt and completion. Longer old solutions are left out."""
    packing: bool = True
    """Put several solutions in a row; they do not see one another."""
    microbatches: Positive = 1
    """Parts into which an update's rows are split to save memory; the gradient is the same."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5)
    """AdamW; the paper's reward model has 2e-5."""
    logging_steps: Positive = 10
    """A line of metrics every so many steps."""
    save_steps: Count = 100
    """A checkpoint every so many steps, and one at the end; 0: only at the end."""
