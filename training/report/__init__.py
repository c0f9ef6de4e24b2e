"""One self-contained HTML page about runs: `page` writes it, the other modules say what is in it."""
