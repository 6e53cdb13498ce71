"""Models and features on the Hub, with their cards."""
