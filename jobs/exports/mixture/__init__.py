"""A mixture in every form: its folder, its parts, and the code that routes its prompts."""
