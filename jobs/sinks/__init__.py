"""Where finished runs are also told: tracking servers."""
