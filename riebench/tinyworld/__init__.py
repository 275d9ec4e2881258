"""The embedded world and its judges: scenes, captions, renderer, starting noise, oracle, grounder, CLIP."""
