"""One file a model family: how its Hugging Face configuration and parameter names map to ours."""

REMEDIES = {
    "gemma3": "has a vision tower, which is not read; write its text model with transformers and give that: "
    "full = AutoModelForCausalLM.from_pretrained(PATH); text = Gemma3ForCausalLM(full.config.text_config); "
    "text.model.load_state_dict(full.model.language_model.state_dict()); text.to(full.dtype).save_pretrained(OUT); "
    "AutoTokenizer.from_pretrained(PATH).save_pretrained(OUT)",
}
"""Why a known model type has no file here, and what to do."""
