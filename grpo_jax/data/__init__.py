"""From files and generators to token arrays: sources of problems, prompts, demonstrations, order and
packing."""
