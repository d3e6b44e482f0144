"""Named data sets: where they lie or come from, and how their files become interactions and a catalogue."""
