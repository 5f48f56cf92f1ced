"""The kinds of scorers; `registry` is the door to them, `base` what one of your own builds on."""
