"""Comparison of prompts with LoRA, fine-tuning and a linear probe: same data, selection and metric."""
