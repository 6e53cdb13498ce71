"""One explanation, shown: `display` has what page and figure share, `sheet` lays figures out."""
