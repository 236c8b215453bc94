"""`nvila demo`: the real node and real cameras, asked over ROS and checked against the synthetic world."""
