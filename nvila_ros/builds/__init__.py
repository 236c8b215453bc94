"""Make builds from recipes, and predict their size and speed."""
