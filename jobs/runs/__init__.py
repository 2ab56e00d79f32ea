"""One run: its inputs, folder, lease and identity; and a finished one, read again."""
