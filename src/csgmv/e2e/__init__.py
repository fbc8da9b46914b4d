"""`csgmv bench --e2e`: a whole transformers model with many adapters in one batch, beside the bare model.

The flow: random_model, random_adapters → ways (to serve a batch) → reference (is it right?) → steps (what is run of a
batch) → stopwatch (how long that takes) → results (in text, Markdown and JSON) → saved (read again, by csgmv report);
command puts them together.
"""
