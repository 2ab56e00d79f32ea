"""The searches for strengths: they propose what to try, and read what was found of it; they draw nothing themselves."""
