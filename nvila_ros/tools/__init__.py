"""One console script, `nvila <verb>`, and the camera node that demos and tests look through; each verb is a module."""
