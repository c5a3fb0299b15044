"""The harmful fine-tuning lab."""
