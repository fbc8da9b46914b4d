"""Raw results → rows, chunk sizes and defaults: collect → choose, in which `chunk_sizes` and `defaults` are parts.

`left_out` says what keys would get without their own rows.

Standard library only, like `rules`, and for the same reason: the codegen renders what is chosen as the generated table,
`overlay` lays it over that table at run time.
"""
