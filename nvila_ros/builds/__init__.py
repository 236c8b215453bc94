"""From a recipe to a build that engines load, and how large and fast it will be."""
