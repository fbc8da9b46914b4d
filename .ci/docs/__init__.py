"""The API reference: docstrings as pages, by pdoc. `python -m docs` writes them."""
