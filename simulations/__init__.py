"""Run configs and experiment scripts."""
