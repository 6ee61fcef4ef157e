"""From a trained network to a smaller and faster one, within an accuracy budget."""
