"""csgmv under the interfaces of other projects; each module is imported by its own name and needs only what it uses."""
