"""DeepSeekMath (arXiv:2402.03300) in JAX: from supervised fine-tuning over GRPO to evaluation."""
