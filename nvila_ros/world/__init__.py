"""The synthetic world: scenes, the two cameras that film them, and questions with known answers."""
