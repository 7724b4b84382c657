"""Results: decisions are recorded once, labelled, listed, watched and scored."""
