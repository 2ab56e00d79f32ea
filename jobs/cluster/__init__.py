"""Work handed out on Ray. Which work it is, is not known here."""
