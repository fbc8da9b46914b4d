"""Raw results → a page to judge them by: findings → sections → page, one module a stage.

`findings` reads, `landscape` looks at a key's candidates, `dots` and `maps` draw on `canvas`, `sections` says what the
page has, a function a section, of `elements`; `page` makes HTML of it, `command` is `csgmv report`.
"""
