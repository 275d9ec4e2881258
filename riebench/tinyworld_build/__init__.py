"""How the embedded world is made: its models trained, its edit set written, judged against the renderer."""
