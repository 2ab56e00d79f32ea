"""From a prompt to a stored shard: what is drawn, under which key, and by what."""
