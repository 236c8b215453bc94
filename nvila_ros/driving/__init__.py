"""From a model's choices to motion that is allowed: what is watched, what is decided, how a step is made. No ROS."""
