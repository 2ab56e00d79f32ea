"""The forms: each module writes one, from the base model and the edit."""
