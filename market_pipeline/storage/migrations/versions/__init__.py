"""The migrations, in order; each is written once and never edited after a release."""
